//! Whether a picture's background has the colour its prompt asked for: the border's mean colour must be nearest to that one
//! among all named colours, and a plain background must be plain.

use image::RgbImage;

/// A colour with its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedColor {
    pub name: String,
    pub rgb: [u8; 3],
}

/// One picture's result.
#[derive(Clone, Debug)]
pub struct Judgement {
    pub prompt: String,
    pub expected: String,
    /// The named colour nearest to the border's mean, by Euclidean distance in RGB.
    pub nearest: String,
    /// Mean colour of the border, 0..=255.
    pub mean: [f64; 3],
    /// Standard deviation of the border, the root of the channels' mean variance, on the scale 0..=255.
    pub deviation: f64,
}

impl Judgement {
    pub fn is_right(&self) -> bool {
        self.expected == self.nearest
    }
}

/// Looks at the outermost pixels of `picture` (a frame of 1/16 of the shorter side, at least one pixel).
pub fn judge(picture: &RgbImage, prompt: &str, expected: &str, colors: &[NamedColor]) -> Judgement {
    let (width, height) = picture.dimensions();
    let frame = (width.min(height) / 16).max(1);
    let in_frame = |x: u32, y: u32| x < frame || y < frame || x + frame >= width || y + frame >= height;
    let border: Vec<[f64; 3]> =
        picture.enumerate_pixels().filter(|(x, y, _)| in_frame(*x, *y)).map(|(.., p)| p.0.map(f64::from)).collect();
    let count = border.len().max(1) as f64;
    let mean = [0, 1, 2].map(|c| border.iter().map(|p| p[c]).sum::<f64>() / count);
    let variance = [0, 1, 2].map(|c| border.iter().map(|p| (p[c] - mean[c]).powi(2)).sum::<f64>() / count);
    let distance =
        |color: &&NamedColor| color.rgb.iter().zip(mean).map(|(&c, m)| (f64::from(c) - m).powi(2)).sum::<f64>();
    let nearest = colors.iter().min_by(|a, b| distance(a).total_cmp(&distance(b))).map_or("", |c| &c.name);
    Judgement {
        prompt: prompt.to_owned(),
        expected: expected.to_owned(),
        nearest: nearest.to_owned(),
        mean,
        deviation: (variance.iter().sum::<f64>() / 3.0).sqrt(),
    }
}

/// The bar a model has to reach.
#[derive(Clone, Copy, Debug)]
pub struct Bar {
    /// Share of prompts whose colour must be right.
    pub right: f64,
    /// A border whose standard deviation is not below this is uneven.
    pub deviation: f64,
    /// How many borders may be uneven: an object may reach the border.
    pub uneven: usize,
}

impl Default for Bar {
    fn default() -> Self {
        Self { right: 0.9, deviation: 15.0, uneven: 0 }
    }
}

/// All judgements together.
#[derive(Clone, Debug)]
pub struct Score {
    pub judgements: Vec<Judgement>,
}

impl Score {
    pub fn right(&self) -> usize {
        self.judgements.iter().filter(|j| j.is_right()).count()
    }

    pub fn share_right(&self) -> f64 {
        self.right() as f64 / self.judgements.len().max(1) as f64
    }

    pub fn mean_deviation(&self) -> f64 {
        self.judgements.iter().map(|j| j.deviation).sum::<f64>() / self.judgements.len().max(1) as f64
    }

    /// Borders at or over the bar's deviation.
    pub fn uneven(&self, bar: Bar) -> usize {
        self.judgements.iter().filter(|j| j.deviation >= bar.deviation).count()
    }

    pub fn passes(&self, bar: Bar) -> bool {
        !self.judgements.is_empty() && self.share_right() >= bar.right && self.uneven(bar) <= bar.uneven
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn colors() -> Vec<NamedColor> {
        [("red", [220, 50, 40]), ("blue", [40, 90, 210])].map(|(n, rgb)| NamedColor { name: n.into(), rgb }).to_vec()
    }

    #[test]
    fn only_the_border_counts() {
        let mut picture = RgbImage::from_pixel(32, 24, image::Rgb([50, 80, 200]));
        for (x, y, pixel) in picture.enumerate_pixels_mut() {
            if (4..28).contains(&x) && (4..20).contains(&y) {
                pixel.0 = [220, 50, 40];
            }
        }
        let judgement = judge(&picture, "a car on a blue background", "blue", &colors());
        assert!(judgement.is_right() && judgement.deviation < 1e-9);
        assert!(!judge(&picture, "", "red", &colors()).is_right());
    }

    #[test]
    fn an_uneven_or_wrong_border_fails_the_bar() {
        let plain = RgbImage::from_pixel(16, 16, image::Rgb([220, 50, 40]));
        let noisy = RgbImage::from_fn(16, 16, |x, y| image::Rgb([if (x + y) % 2 == 0 { 255 } else { 150 }, 50, 40]));
        let score = |picture, expected| Score { judgements: vec![judge(picture, "", expected, &colors())] };
        assert!(score(&plain, "red").passes(Bar::default()));
        assert!(!score(&plain, "blue").passes(Bar::default()));
        assert!(!score(&noisy, "red").passes(Bar::default()));
        assert!(score(&noisy, "red").passes(Bar { uneven: 1, ..Bar::default() }));
        assert!(!Score { judgements: Vec::new() }.passes(Bar::default()));
    }
}
