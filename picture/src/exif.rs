//! EXIF tags as JSON.

use std::io::Cursor;

use serde_json::{Map, Value};

/// Longer values (previews, a maker's own notes) are left out.
const LONGEST: usize = 1000;

/// The tags of an image as a JSON object from names to texts, sorted; `None` where there are none.
pub fn exif(bytes: &[u8]) -> Option<String> {
    let mut reader = exif::Reader::new();
    reader.continue_on_error(true);
    let read = reader.read_from_container(&mut Cursor::new(bytes));
    let exif = read.or_else(|error| error.distill_partial_result(|_faults| ())).ok()?;
    let mut tags: Vec<(String, String)> = exif
        .fields()
        .filter(|field| field.ifd_num == exif::In::PRIMARY && field.value.len_is_small())
        .map(|field| (field.tag.to_string(), field.display_value().with_unit(&exif).to_string()))
        .filter(|(_, text)| text.len() <= LONGEST)
        .collect();
    tags.sort();
    let tags: Map<String, Value> = tags.into_iter().map(|(tag, text)| (tag, text.into())).collect();
    if tags.is_empty() { None } else { Some(Value::Object(tags).to_string()) }
}

trait Length {
    fn len_is_small(&self) -> bool;
}

impl Length for exif::Value {
    fn len_is_small(&self) -> bool {
        match self {
            Self::Undefined(bytes, _) | Self::Byte(bytes) => bytes.len() <= LONGEST,
            Self::Ascii(texts) => texts.iter().map(Vec::len).sum::<usize>() <= LONGEST,
            Self::Short(numbers) => numbers.len() <= LONGEST,
            _ => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_come_by_name_and_anything_else_has_none() {
        let tiff = b"II*\0\x08\0\0\0\x02\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\x10\x01\x02\0\x04\0\0\0X10\0\0\0\0\0";
        let mut jpeg = vec![0xff, 0xd8, 0xff, 0xe1, 0, (2 + 6 + tiff.len()) as u8];
        jpeg.extend(b"Exif\0\0");
        jpeg.extend(tiff);
        jpeg.extend([0xff, 0xda, 0, 2, 0xff, 0xd9]);
        let tags: Value = serde_json::from_str(&exif(&jpeg).unwrap()).unwrap();
        assert!(tags["Orientation"].as_str().unwrap().contains("right"), "{tags}");
        assert!(tags["Model"].as_str().unwrap().contains("X10"), "{tags}");
        assert_eq!(exif(b"not an image"), None);
        for end in 0..jpeg.len() {
            let _ = exif(&jpeg[..end]);
        }
    }
}
