//! The named colours of the backgrounds.

/// A colour and the word that captions use for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NamedColor {
    /// The word, as a child would say it: "teal".
    pub name: &'static str,
    /// Red, green and blue in sRGB, 0 to 255.
    pub rgb: [u8; 3],
}

/// The twelve colours. Any two are more than 100 of 255 apart (Euclidean distance in sRGB), so that the nearest named colour of a
/// sampled background is a fair question.
pub const COLORS: [NamedColor; 12] = [
    NamedColor { name: "red", rgb: [222, 38, 42] },
    NamedColor { name: "orange", rgb: [255, 137, 12] },
    NamedColor { name: "yellow", rgb: [249, 231, 66] },
    NamedColor { name: "green", rgb: [57, 166, 56] },
    NamedColor { name: "teal", rgb: [16, 155, 156] },
    NamedColor { name: "blue", rgb: [42, 78, 228] },
    NamedColor { name: "purple", rgb: [130, 38, 178] },
    NamedColor { name: "pink", rgb: [250, 150, 190] },
    NamedColor { name: "brown", rgb: [119, 73, 40] },
    NamedColor { name: "grey", rgb: [139, 139, 139] },
    NamedColor { name: "black", rgb: [18, 18, 18] },
    NamedColor { name: "white", rgb: [246, 246, 246] },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_two_colors_are_far_apart() {
        for (index, one) in COLORS.iter().enumerate() {
            for other in &COLORS[index + 1..] {
                let squared: i32 =
                    one.rgb.iter().zip(other.rgb).map(|(&a, b)| (i32::from(a) - i32::from(b)).pow(2)).sum();
                assert!(
                    squared > 100 * 100,
                    "{} and {} are only {:.1} apart",
                    one.name,
                    other.name,
                    f64::from(squared).sqrt()
                );
            }
        }
    }
}
