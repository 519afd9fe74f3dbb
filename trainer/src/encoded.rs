//! Images and captions that were encoded ahead of a training, so that it needs no encoders.
//!
//! Each is a safetensors file, the value of one row's column `encoded` ([`shards::columns::ENCODED`]):
//!
//! ```text
//! latent.mean          (channels, height / factor, width / factor), before any scaling
//! latent.logvar        likewise; not where latents are drawn from no distribution
//! {column}.tokens.0    (tokens, features) of a caption column, without the zeros behind a caption's end
//! {column}.tokens.1
//! {column}.pooled      (features)
//! __metadata__         ferrotype: {"columns": […], "lengths": […], "width": …, "pooled": …}, where captions are encoded
//! ```
//!
//! An empty caption has no entries: all of it is zeros. What the encoders were is not in the file; a manifest's stages compare them.

use std::collections::HashMap;

use models::ModelError;
use models::latents::{LatentCodec, LatentDistribution, Latents};
use models::text::{TextCondition, TextEncoder, TextEncoding};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

const MEAN: &str = "latent.mean";
const LOGVAR: &str = "latent.logvar";
const METADATA: &str = "ferrotype";

/// How numbers are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum StoredPrecision {
    Float32,
    /// Latents in float16, which is finer where they lie; texts in bfloat16, which has the wider range.
    #[default]
    Half,
}

/// What is known of the captions' encoding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct TextLayout {
    /// The caption columns that are encoded.
    columns: Vec<String>,
    /// Tokens of each stream, padding included.
    lengths: Vec<usize>,
    /// Features of a token.
    width: usize,
    /// Features of the pooled text.
    pooled: usize,
}

/// Numbers as they were kept.
#[derive(Clone, Debug, PartialEq)]
pub struct Numbers {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl Numbers {
    fn of(view: &TensorView) -> Result<Self, String> {
        let (dtype, shape) = (view.dtype(), view.shape().to_vec());
        if !matches!(dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16) {
            return Err(format!("it has numbers of the type {dtype:?}"));
        }
        Ok(Self { dtype, shape, bytes: view.data().to_vec() })
    }

    fn zeros(shape: Vec<usize>) -> Self {
        let bytes = vec![0; 4 * shape.iter().product::<usize>()];
        Self { dtype: Dtype::F32, shape, bytes }
    }

    /// Float32 on a device.
    fn tensor(&self, device: Device) -> Result<Tensor, ModelError> {
        let kind = match self.dtype {
            Dtype::F16 => Kind::Half,
            Dtype::BF16 => Kind::BFloat16,
            _ => Kind::Float,
        };
        let shape: Vec<i64> = self.shape.iter().map(|&side| side as i64).collect();
        let tensor = Tensor::f_from_data_size(&self.bytes, &shape, kind);
        Ok(tensor.map_err(ModelError::torch("reading encoded numbers"))?.to_device(device).to_kind(Kind::Float))
    }
}

/// One image, and one of its captions where captions are encoded too.
#[derive(Clone, Debug, PartialEq)]
pub struct EncodedSample {
    mean: Numbers,
    logvar: Option<Numbers>,
    text: Option<EncodedText>,
}

#[derive(Clone, Debug, PartialEq)]
struct EncodedText {
    /// Of each stream, (tokens, features).
    tokens: Vec<Numbers>,
    pooled: Numbers,
    lengths: Vec<usize>,
}

impl EncodedSample {
    /// Reads what was kept of an image of `width` × `height` pixels, and of the caption in `column` (`None` for an empty one). An error
    /// says in words what is wrong with it.
    pub fn read(bytes: &[u8], column: Option<&str>, (width, height): (u32, u32)) -> Result<Self, String> {
        let damaged = |error: safetensors::SafeTensorError| format!("what was encoded cannot be read: {error}");
        let (_, header) = SafeTensors::read_metadata(bytes).map_err(damaged)?;
        let file = SafeTensors::deserialize(bytes).map_err(damaged)?;
        let of = |name: &str| file.tensor(name).ok().map(|view| Numbers::of(&view)).transpose();
        let mean = of(MEAN)?.ok_or_else(|| format!("it has no {MEAN}"))?;
        let logvar = of(LOGVAR)?;
        let fits = |numbers: &Numbers| match numbers.shape[..] {
            [_, rows, columns] => rows as u64 * u64::from(width) == columns as u64 * u64::from(height),
            _ => false,
        };
        if !fits(&mean) || logvar.as_ref().is_some_and(|logvar| logvar.shape != mean.shape) {
            return Err(format!("its latent has the shape {:?}, which is not that of {width}x{height}", mean.shape));
        }
        let layout = header.metadata().as_ref().and_then(|metadata| metadata.get(METADATA));
        let Some(layout) = layout else { return Ok(Self { mean, logvar, text: None }) };
        let layout: TextLayout =
            serde_json::from_str(layout).map_err(|error| format!("its layout of texts cannot be read: {error}"))?;
        let text = match column {
            Some(column) if !layout.columns.iter().any(|known| known == column) => {
                let known = layout.columns.join(", ");
                return Err(format!("the captions in {column} were not encoded; those in {known} were"));
            }
            Some(column) => layout.read(column, of)?,
            None => layout.nothing(),
        };
        Ok(Self { mean, logvar, text: Some(text) })
    }

    /// Whether a caption's encoding is there.
    pub fn has_text(&self) -> bool {
        self.text.is_some()
    }

    /// Bytes in memory.
    pub fn bytes(&self) -> u64 {
        let text = self.text.iter().flat_map(|text| text.tokens.iter().chain([&text.pooled]));
        let all = [&self.mean].into_iter().chain(&self.logvar).chain(text);
        all.map(|numbers| numbers.bytes.len() as u64).sum()
    }

    /// The distribution of the latents of samples of one size, on a device.
    pub(crate) fn distribution(samples: &[&Self], device: Device) -> Result<LatentDistribution, ModelError> {
        let stacked = |numbers: Vec<&Numbers>| {
            let tensors = numbers.into_iter().map(|n| n.tensor(device)).collect::<Result<Vec<_>, _>>()?;
            Tensor::f_stack(&tensors, 0).map_err(ModelError::torch("putting encoded latents together"))
        };
        let mean = stacked(samples.iter().map(|sample| &sample.mean).collect())?;
        let logvars: Option<Vec<&Numbers>> = samples.iter().map(|sample| sample.logvar.as_ref()).collect();
        Ok(LatentDistribution { mean, logvar: logvars.map(stacked).transpose()? })
    }

    /// Their captions as the model takes them; `None` where one has no text.
    pub(crate) fn condition(samples: &[&Self], device: Device) -> Result<Option<TextCondition>, ModelError> {
        let texts: Option<Vec<&EncodedText>> = samples.iter().map(|sample| sample.text.as_ref()).collect();
        let Some(texts) = texts else { return Ok(None) };
        let together = |tensors: Vec<Tensor>| {
            Tensor::f_stack(&tensors, 0).map_err(ModelError::torch("putting encoded texts together"))
        };
        let streams = texts.first().map_or(0, |text| text.tokens.len());
        let stream = |number: usize| {
            let of = |text: &&EncodedText| {
                let (Some(tokens), Some(&length)) = (text.tokens.get(number), text.lengths.get(number)) else {
                    return Err(ModelError::Configuration {
                        what: "streams of encoded texts",
                        value: text.tokens.len().to_string(),
                        expected: format!("{streams}, as of the others in the batch"),
                    });
                };
                let tokens = tokens.tensor(device)?;
                let missing = length as i64 - tokens.size().first().copied().unwrap_or(0);
                Ok(tokens.constant_pad_nd([0, 0, 0, missing.max(0)]))
            };
            together(texts.iter().map(of).collect::<Result<Vec<_>, _>>()?)
        };
        let tokens = (0..streams).map(stream).collect::<Result<Vec<_>, _>>()?;
        let pooled = texts.iter().map(|text| text.pooled.tensor(device)).collect::<Result<Vec<_>, _>>()?;
        Ok(Some(TextCondition { tokens, pooled: together(pooled)? }))
    }
}

impl TextLayout {
    fn read(&self, column: &str, of: impl Fn(&str) -> Result<Option<Numbers>, String>) -> Result<EncodedText, String> {
        let Some(pooled) = of(&format!("{column}.pooled"))? else { return Ok(self.nothing()) };
        let stream = |(number, length): (usize, &usize)| {
            let name = format!("{column}.tokens.{number}");
            let tokens = of(&name)?.ok_or_else(|| format!("it has no {name}"))?;
            match tokens.shape[..] {
                [tokens, width] if tokens <= *length && width == self.width => {}
                ref shape => return Err(format!("its {name} has the shape {shape:?}")),
            }
            Ok(tokens)
        };
        let tokens = self.lengths.iter().enumerate().map(stream).collect::<Result<Vec<_>, _>>()?;
        if pooled.shape != [self.pooled] {
            return Err(format!("its {column}.pooled has the shape {:?}", pooled.shape));
        }
        Ok(EncodedText { tokens, pooled, lengths: self.lengths.clone() })
    }

    /// Of an empty caption.
    fn nothing(&self) -> EncodedText {
        EncodedText {
            tokens: self.lengths.iter().map(|_| Numbers::zeros(vec![0, self.width])).collect(),
            pooled: Numbers::zeros(vec![self.pooled]),
            lengths: self.lengths.clone(),
        }
    }
}

/// Encodes pictures and captions ahead of a training.
pub struct Ahead {
    codec: Box<dyn LatentCodec>,
    text: Option<Box<dyn TextEncoder>>,
    precision: StoredPrecision,
    device: Device,
}

impl Ahead {
    /// Loads the encoders; `text` where captions are encoded too.
    pub fn load(
        latents: &Latents,
        text: Option<&TextEncoding>,
        precision: StoredPrecision,
        device: Device,
    ) -> Result<Self, ModelError> {
        let text = text.map(|text| text.encoder(device)).transpose()?;
        Ok(Self { codec: latents.codec(device)?, text, precision, device })
    }

    /// What is to be kept of pictures of one size and of their captions: of each column its name and one caption a picture. `None` in
    /// place of a picture whose numbers are not finite, or too large to be kept.
    pub fn encode(
        &self,
        pictures: &[&image::RgbImage],
        captions: &[(&str, Vec<&str>)],
    ) -> Result<Vec<Option<Vec<u8>>>, ModelError> {
        let pixels = crate::encode::pixels(pictures, self.device)?;
        let LatentDistribution { mean, logvar } = self.codec.distribution(&pixels)?;
        let (of_latents, of_text) = match self.precision {
            StoredPrecision::Float32 => (Kind::Float, Kind::Float),
            StoredPrecision::Half => (Kind::Half, Kind::BFloat16),
        };
        let mut stacked = vec![(MEAN.to_owned(), kept(&mean, of_latents))];
        stacked.extend(logvar.map(|logvar| (LOGVAR.to_owned(), kept(&logvar, of_latents))));
        let mut layout: Option<TextLayout> = None;
        for (column, captions) in captions {
            let Some(encoder) = &self.text else { continue };
            let TextCondition { tokens, pooled } = encoder.encode(captions)?;
            let side = |tensor: &Tensor, n: usize| tensor.size().get(n).map_or(0, |&side| side as usize);
            let layout = layout.get_or_insert_with(|| TextLayout {
                columns: Vec::new(),
                lengths: tokens.iter().map(|tokens| side(tokens, 1)).collect(),
                width: tokens.first().map_or(0, |tokens| side(tokens, 2)),
                pooled: side(&pooled, 1),
            });
            layout.columns.push((*column).to_owned());
            let tokens = tokens.iter().enumerate();
            stacked.extend(tokens.map(|(n, tokens)| (format!("{column}.tokens.{n}"), kept(tokens, of_text))));
            stacked.push((format!("{column}.pooled"), kept(&pooled, of_text)));
        }
        let layout = layout.map(|layout| serde_json::to_string(&layout).unwrap_or_default());
        let of_picture = |number: usize| {
            let is_empty = |name: &str| {
                captions.iter().any(|(column, texts)| {
                    name.strip_prefix(column).is_some_and(|rest| rest.starts_with('.'))
                        && texts.get(number).is_none_or(|text| text.is_empty())
                })
            };
            let tensors = stacked.iter().filter(|(name, _)| !is_empty(name));
            let tensors: Vec<(&str, Tensor)> =
                tensors.map(|(name, tensor)| (name.as_str(), trimmed(name, tensor.get(number as i64)))).collect();
            file_of(&tensors, layout.as_deref())
        };
        (0..pictures.len()).map(of_picture).collect()
    }
}

/// In the type that is kept, in the CPU's memory.
fn kept(tensor: &Tensor, kind: Kind) -> Tensor {
    tensor.to_kind(kind).to_device(Device::Cpu).contiguous()
}

/// Of tokens, without the zeros behind the last one.
fn trimmed(name: &str, tensor: Tensor) -> Tensor {
    if !name.contains(".tokens.") || tensor.dim() != 2 {
        return tensor;
    }
    let used = tensor.not_equal(0.0).any_dim(-1, false).nonzero();
    let length = if used.numel() == 0 { 0 } else { used.max().int64_value(&[]) + 1 };
    tensor.narrow(0, 0, length).contiguous()
}

/// `None` where a number is not finite.
fn file_of(tensors: &[(&str, Tensor)], layout: Option<&str>) -> Result<Option<Vec<u8>>, ModelError> {
    let mut bytes = Vec::with_capacity(tensors.len());
    for (name, tensor) in tensors {
        if tensor.numel() > 0 && tensor.isfinite().all().int64_value(&[]) == 0 {
            return Ok(None);
        }
        let dtype = match tensor.kind() {
            Kind::Half => Dtype::F16,
            Kind::BFloat16 => Dtype::BF16,
            _ => Dtype::F32,
        };
        let shape = tensor.size().iter().map(|&side| side as usize).collect();
        bytes.push((*name, dtype, shape, models::weights::bytes_of(tensor)));
    }
    let refused = |error: safetensors::SafeTensorError| ModelError::Configuration {
        what: "what was encoded",
        value: error.to_string(),
        expected: "tensors that a safetensors file can hold".to_owned(),
    };
    let views = bytes.iter().map(|(name, dtype, shape, bytes): &(&str, Dtype, Vec<usize>, Vec<u8>)| {
        Ok((*name, TensorView::new(*dtype, shape.clone(), bytes).map_err(refused)?))
    });
    let views = views.collect::<Result<Vec<_>, ModelError>>()?;
    let metadata = layout.map(|layout| HashMap::from([(METADATA.to_owned(), layout.to_owned())]));
    safetensors::serialize(views, metadata).map(Some).map_err(refused)
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::{Rgb, RgbImage};

    fn ahead(precision: StoredPrecision, text: Option<&TextEncoding>) -> Ahead {
        Ahead::load(&Latents::Pixels, text, precision, Device::Cpu).unwrap()
    }

    #[test]
    fn what_is_kept_in_float32_comes_back_to_the_bit_and_in_half_nearly() {
        let picture = |n: u8| RgbImage::from_fn(8, 4, |x, y| Rgb([x as u8 * 30, y as u8 * 60, n]));
        let pictures = [picture(3), picture(200)];
        let pictures: Vec<&RgbImage> = pictures.iter().collect();
        let captions = [("caption", vec!["a red fox", ""]), ("recaption", vec!["one two three four", "five"])];
        let expected = Latents::Pixels.codec(Device::Cpu).unwrap();
        let pixels = crate::encode::pixels(&pictures, Device::Cpu).unwrap();
        let expected = expected.distribution(&pixels).unwrap().mean;
        let texts = TextEncoding::Hash.encoder(Device::Cpu).unwrap();
        for (precision, tolerance) in [(StoredPrecision::Float32, 0.0), (StoredPrecision::Half, 0.02)] {
            let files = ahead(precision, Some(&TextEncoding::Hash)).encode(&pictures, &captions).unwrap();
            let files: Vec<Vec<u8>> = files.into_iter().map(Option::unwrap).collect();
            assert_eq!(files, {
                let again = ahead(precision, Some(&TextEncoding::Hash)).encode(&pictures, &captions).unwrap();
                again.into_iter().map(Option::unwrap).collect::<Vec<_>>()
            });
            for (column, texts_of) in &captions {
                let read = |(file, text): (&Vec<u8>, &&str)| {
                    EncodedSample::read(file, (!text.is_empty()).then_some(*column), (8, 4)).unwrap()
                };
                let samples: Vec<EncodedSample> = files.iter().zip(texts_of).map(read).collect();
                let samples: Vec<&EncodedSample> = samples.iter().collect();
                let LatentDistribution { mean, logvar } = EncodedSample::distribution(&samples, Device::Cpu).unwrap();
                assert!(logvar.is_none() && (mean - &expected).abs().max().double_value(&[]) <= tolerance);
                let found = EncodedSample::condition(&samples, Device::Cpu).unwrap().unwrap();
                let online = texts.encode(texts_of).unwrap();
                assert_eq!(found.tokens[0].size(), online.tokens[0].size());
                assert!((&found.tokens[0] - &online.tokens[0]).abs().max().double_value(&[]) <= tolerance);
                assert!((&found.pooled - &online.pooled).abs().max().double_value(&[]) <= tolerance);
            }
        }
    }

    #[test]
    fn damaged_and_other_files_are_refused_in_words() {
        let picture = RgbImage::new(8, 4);
        let with = |text: Option<&TextEncoding>| {
            let captions = [("caption", vec!["a fox"])];
            ahead(StoredPrecision::Half, text).encode(&[&picture], &captions).unwrap().remove(0).unwrap()
        };
        let (whole, without) = (with(Some(&TextEncoding::Hash)), with(None));
        let refused = |bytes: &[u8], column, size| EncodedSample::read(bytes, column, size).unwrap_err();
        assert!(refused(&whole[..100], Some("caption"), (8, 4)).contains("cannot be read"));
        assert!(refused(&whole, Some("other"), (8, 4)).contains("the captions in other were not encoded"));
        assert!(refused(&whole, Some("caption"), (4, 8)).contains("not that of 4x8"));
        assert!(refused(&[9; 64], None, (8, 4)).contains("cannot be read"));
        assert!(!EncodedSample::read(&without, Some("caption"), (8, 4)).unwrap().has_text());
        for at in (0..whole.len()).step_by(7) {
            let mut bad = whole.clone();
            bad[at] ^= 0x41;
            // Whatever it says, it does not panic.
            drop(EncodedSample::read(&bad, Some("caption"), (8, 4)));
        }
    }
}
