//! Pictures in terminals that can show them.

use std::env;
use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use image::RgbImage;
use image::imageops::{self, ColorMap};

/// A way of showing pictures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Terminal {
    /// kitty's graphics protocol; Ghostty and Konsole know it too.
    Kitty,
    /// iTerm's inline images; WezTerm and VS Code know them too.
    Iterm,
    Sixel,
}

/// Bytes of base64 in one of kitty's commands, at most.
const KITTY_CHUNK: usize = 4096;

impl Terminal {
    /// What this process's terminal can show, by the names that terminals give themselves; `None` where that is nothing, or not known.
    pub(crate) fn find() -> Option<Self> {
        if !io::stdout().is_terminal() {
            return None;
        }
        Self::by_names(|name| env::var(name).ok())
    }

    fn by_names(variable: impl Fn(&str) -> Option<String>) -> Option<Self> {
        let [term, program] = ["TERM", "TERM_PROGRAM"].map(|name| variable(name).unwrap_or_default());
        // Multiplexers do not pass pictures on.
        if term.starts_with("screen") || term.starts_with("tmux") {
            return None;
        }
        let is_set = |name: &str| variable(name).is_some_and(|value| !value.is_empty());
        if is_set("KITTY_WINDOW_ID")
            || ["xterm-kitty", "xterm-ghostty"].contains(&term.as_str())
            || is_set("KONSOLE_VERSION")
        {
            return Some(Self::Kitty);
        }
        if ["iTerm.app", "WezTerm", "vscode"].contains(&program.as_str()) {
            return Some(Self::Iterm);
        }
        let knows_sixel = ["foot", "mlterm", "yaft", "contour"].iter().any(|name| term.starts_with(name));
        (knows_sixel || term.contains("sixel")).then_some(Self::Sixel)
    }

    /// Writes a picture, given as pixels and as PNG.
    pub(crate) fn show(self, picture: &RgbImage, png: &[u8], out: &mut impl Write) -> io::Result<()> {
        match self {
            Self::Kitty => {
                let text = STANDARD.encode(png);
                let chunks: Vec<&[u8]> = text.as_bytes().chunks(KITTY_CHUNK).collect();
                for (number, chunk) in chunks.iter().enumerate() {
                    // The first says that it is a PNG to be shown at once; m = 1 where more follows.
                    let first = if number == 0 { "f=100,a=T," } else { "" };
                    write!(out, "\x1b_G{first}m={};", u8::from(number + 1 < chunks.len()))?;
                    out.write_all(chunk)?;
                    write!(out, "\x1b\\")?;
                }
            }
            Self::Iterm => {
                let mut text = String::new();
                let _ = write!(text, "\x1b]1337;File=inline=1;size={}:{}\x07", png.len(), STANDARD.encode(png));
                out.write_all(text.as_bytes())?;
            }
            Self::Sixel => {
                out.write_all(sixels(picture).as_bytes())?;
            }
        }
        writeln!(out)
    }
}

/// Six shades of each colour: what every terminal with sixels has registers for.
struct Cube;

impl Cube {
    const SHADES: usize = 6;

    fn shade(value: u8) -> usize {
        (usize::from(value) * (Self::SHADES - 1) + 127) / 255
    }

    fn color(index: usize) -> [usize; 3] {
        [index / (Self::SHADES * Self::SHADES), index / Self::SHADES % Self::SHADES, index % Self::SHADES]
    }
}

impl ColorMap for Cube {
    type Color = image::Rgb<u8>;

    fn index_of(&self, color: &Self::Color) -> usize {
        color.0.iter().fold(0, |index, value| index * Self::SHADES + Self::shade(*value))
    }

    fn map_color(&self, color: &mut Self::Color) {
        color.0 = color.0.map(|value| (Self::shade(value) * 255 / (Self::SHADES - 1)) as u8);
    }
}

/// A picture in DEC's sixels: bands of six rows; in each, for each of its colours, one letter a column that says which of the six pixels
/// have it. (The crates that do this ask for features of others that nothing else here needs.)
fn sixels(picture: &RgbImage) -> String {
    let mut dithered = picture.clone();
    imageops::dither(&mut dithered, &Cube);
    let (width, height) = dithered.dimensions();
    // P2 = 1: what is not drawn stays as it is. Then the shape of a pixel, and the size.
    let mut out = format!("\x1bP0;1q\"1;1;{width};{height}");
    for index in 0..Cube::SHADES.pow(3) {
        let [red, green, blue] = Cube::color(index).map(|shade| shade * 100 / (Cube::SHADES - 1));
        let _ = write!(out, "#{index};2;{red};{green};{blue}");
    }
    for top in (0..height).step_by(6) {
        let mut rows: std::collections::BTreeMap<usize, Vec<u8>> = std::collections::BTreeMap::new();
        for (x, y) in (0..width).flat_map(|x| (top..height.min(top + 6)).map(move |y| (x, y))) {
            let row = rows.entry(Cube.index_of(dithered.get_pixel(x, y))).or_insert_with(|| vec![0; width as usize]);
            if let Some(sixel) = row.get_mut(x as usize) {
                *sixel |= 1 << (y - top);
            }
        }
        for (index, row) in rows {
            let _ = write!(out, "#{index}");
            for run in row.chunk_by(|a, b| a == b) {
                let letter = char::from(63 + run.first().copied().unwrap_or(0));
                let _ = write!(out, "!{}{letter}", run.len());
            }
            // The next colour draws over the same band.
            out.push('$');
        }
        out.push('-');
    }
    out + "\x1b\\"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(names: &[(&str, &str)]) -> Option<Terminal> {
        Terminal::by_names(|name| names.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned()))
    }

    #[test]
    fn terminals_are_known_by_their_names() {
        assert_eq!(of(&[("TERM", "xterm-kitty")]), Some(Terminal::Kitty));
        assert_eq!(of(&[("TERM", "xterm-256color"), ("TERM_PROGRAM", "WezTerm")]), Some(Terminal::Iterm));
        assert_eq!(of(&[("TERM", "foot-extra")]), Some(Terminal::Sixel));
        assert_eq!(of(&[("TERM", "tmux-256color"), ("KITTY_WINDOW_ID", "1")]), None);
        assert_eq!(of(&[("TERM", "xterm-256color")]), None);
    }

    #[test]
    fn what_is_written_is_the_picture() {
        let mut state = 1u32;
        let picture = RgbImage::from_fn(80, 60, |x, y| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            image::Rgb([x as u8 * 3, y as u8 * 4, (state >> 24) as u8])
        });
        let png = sampler::recipe::png(&picture, None).unwrap();
        let shown = |terminal: Terminal| {
            let mut out = Vec::new();
            terminal.show(&picture, &png, &mut out).unwrap();
            String::from_utf8(out).unwrap()
        };
        let kitty = shown(Terminal::Kitty);
        let parts: Vec<&str> = kitty.trim_end().split("\x1b\\").filter(|part| !part.is_empty()).collect();
        assert!(parts.len() > 1 && parts[0].starts_with("\x1b_Gf=100,a=T,m=1;") && parts[1].starts_with("\x1b_Gm="));
        assert!(parts.last().unwrap().contains("m=0;"));
        let text: String = parts.iter().map(|part| part.split_once(';').unwrap().1).collect();
        assert_eq!(STANDARD.decode(text).unwrap(), png);
        let iterm = shown(Terminal::Iterm);
        let text = iterm.trim_end().trim_end_matches('\x07').split_once(':').unwrap().1;
        assert_eq!(STANDARD.decode(text).unwrap(), png);
        let drawn = drawn(&shown(Terminal::Sixel));
        // Dithered, so that the mean of a neighbourhood is right.
        let mean = |picture: &RgbImage, channel: usize| {
            let values = picture.pixels().map(|pixel| f64::from(pixel.0[channel]));
            values.sum::<f64>() / f64::from(picture.width() * picture.height())
        };
        assert_eq!(drawn.dimensions(), (80, 60));
        for channel in 0..3 {
            assert!((mean(&drawn, channel) - mean(&picture, channel)).abs() < 3.0);
        }
    }

    /// What a terminal would draw.
    fn drawn(sixels: &str) -> RgbImage {
        let body = sixels.trim_end().strip_prefix("\x1bP0;1q\"1;1;80;60").unwrap().strip_suffix("\x1b\\").unwrap();
        let mut picture = RgbImage::from_pixel(80, 60, image::Rgb([255, 0, 255]));
        let mut colors = std::collections::BTreeMap::new();
        let (mut color, mut x, mut top) = (0, 0, 0);
        let mut letters = body.chars().peekable();
        let number = |letters: &mut std::iter::Peekable<std::str::Chars>| {
            let mut number = 0;
            while let Some(digit) = letters.next_if(char::is_ascii_digit) {
                number = number * 10 + digit.to_digit(10).unwrap();
            }
            number
        };
        while let Some(letter) = letters.next() {
            match letter {
                '#' => {
                    color = number(&mut letters);
                    if letters.next_if_eq(&';').is_some() {
                        let mut part = || {
                            let value = number(&mut letters);
                            letters.next_if_eq(&';');
                            value
                        };
                        let [_rgb, red, green, blue] = [part(), part(), part(), part()];
                        colors.insert(color, [red, green, blue].map(|percent| (percent * 255 / 100) as u8));
                    }
                }
                '$' => x = 0,
                '-' => (x, top) = (0, top + 6),
                '!' => {
                    let count = number(&mut letters);
                    let bits = letters.next().unwrap() as u32 - 63;
                    for _ in 0..count {
                        for row in (0..6).filter(|row| bits >> row & 1 == 1) {
                            picture.put_pixel(x, top + row, image::Rgb(colors[&color]));
                        }
                        x += 1;
                    }
                }
                other => panic!("{other:?}"),
            }
        }
        picture
    }
}
