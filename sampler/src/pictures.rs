//! Between tensors and pictures.

use image::{Rgb, RgbImage};
use models::ModelError;
use tch::{Kind, Tensor};

/// Space between the tiles of [`channels`].
const GAP: u32 = 2;

/// `pixels` (batch, 3, height, width), −1..=1 and what lies outside cut off, to pictures, rounded to the nearest of 256.
pub fn from_tensor(pixels: &Tensor) -> Result<Vec<RgbImage>, ModelError> {
    let (batch, channels, height, width) = pixels.size4().map_err(ModelError::torch("making a picture"))?;
    if channels != 3 {
        let expected = "3: red, green and blue".to_owned();
        return Err(ModelError::Configuration { what: "channels of a picture", value: channels.to_string(), expected });
    }
    let bytes =
        ((pixels + 1.0) * 127.5).round().clamp(0.0, 255.0).to_kind(Kind::Uint8).permute([0, 2, 3, 1]).contiguous();
    let mut pictures = Vec::with_capacity(batch as usize);
    for i in 0..batch {
        let mut raw = vec![0u8; (3 * height * width) as usize];
        let elements = raw.len();
        bytes.get(i).f_copy_data_u8(&mut raw, elements).map_err(ModelError::torch("copying a picture"))?;
        pictures.extend(RgbImage::from_raw(width as u32, height as u32, raw));
    }
    Ok(pictures)
}

/// A picture as (1, 3, height, width), −1..=1.
pub fn to_tensor(picture: &RgbImage) -> Result<Tensor, ModelError> {
    let shape = [1, i64::from(picture.height()), i64::from(picture.width()), 3];
    let bytes = Tensor::f_from_data_size(picture.as_raw(), &shape, Kind::Uint8)
        .map_err(ModelError::torch("making a tensor of a picture"))?;
    Ok((bytes.permute([0, 3, 1, 2]).to_kind(Kind::Float) / 127.5 - 1.0).contiguous())
}

/// The channels of a latent (1, channels, height, width) side by side in grey, each from its darkest to its brightest, in
/// about a square.
pub fn channels(latent: &Tensor) -> Result<RgbImage, ModelError> {
    let (_, count, height, width) = latent.size4().map_err(ModelError::torch("making a picture of a latent"))?;
    let (columns, height, width) = ((count as f64).sqrt().ceil() as u32, height as u32, width as u32);
    let rows = (count as u32).div_ceil(columns.max(1));
    let side = |count: u32, length: u32| count * (length + GAP) + GAP;
    let mut sheet = RgbImage::from_pixel(side(columns, width), side(rows, height), Rgb([255; 3]));
    for channel in 0..count {
        let values = latent.select(0, 0).select(0, channel).to_kind(Kind::Float);
        let (low, high) = (values.min().double_value(&[]), values.max().double_value(&[]));
        let grey = ((values - low) * (255.0 / (high - low).max(1e-12))).to_kind(Kind::Uint8).contiguous();
        let mut raw = vec![0u8; (height * width) as usize];
        let elements = raw.len();
        grey.f_copy_data_u8(&mut raw, elements).map_err(ModelError::torch("copying a latent"))?;
        let (left, top) =
            (channel as u32 % columns * (width + GAP) + GAP, channel as u32 / columns * (height + GAP) + GAP);
        for (i, value) in raw.into_iter().enumerate() {
            sheet.put_pixel(left + i as u32 % width, top + i as u32 / width, Rgb([value; 3]));
        }
    }
    Ok(sheet)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_survive_the_way_to_tensors_and_back() {
        let picture = RgbImage::from_fn(7, 5, |x, y| Rgb([x as u8 * 30, y as u8 * 60, (x * y) as u8 * 7]));
        let tensor = to_tensor(&picture).unwrap();
        assert_eq!(tensor.size(), [1, 3, 5, 7]);
        assert_eq!(from_tensor(&tensor).unwrap(), [picture]);
    }

    #[test]
    fn every_channel_has_a_tile_from_black_to_white() {
        let latent = Tensor::arange(5 * 2 * 3, (Kind::Float, tch::Device::Cpu)).view([1, 5, 2, 3]);
        let sheet = channels(&latent).unwrap();
        assert_eq!(sheet.dimensions(), (17, 10));
        assert_eq!((sheet.get_pixel(2, 2).0, sheet.get_pixel(4, 3).0), ([0; 3], [255; 3]));
        assert_eq!((sheet.get_pixel(7, 6).0, sheet.get_pixel(9, 7).0), ([0; 3], [255; 3]));
    }
}
