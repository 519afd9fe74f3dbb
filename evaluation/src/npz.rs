//! A mean and a covariance as pytorch-fid and others publish them: `mu` and `sigma` in an .npz.
//!
//! That is a zip of .npy files, one for each array, stored or deflated. Other arrays in it are not looked at.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use zip::ZipArchive;
use zip::result::ZipError;

use crate::{EvaluationError, FrechetReference, NetworkName};

const MAGIC: [u8; 6] = *b"\x93NUMPY";

/// No description of an array of plain numbers is longer: NumPy pads it to 128 bytes.
const LONGEST: u64 = 1 << 12;

impl FrechetReference {
    /// Reads `mu` and `sigma`, float32 or float64, of as many dimensions as `network` has; of others no number is read.
    pub fn from_npz(path: &Path, network: &NetworkName) -> Result<Self, EvaluationError> {
        let unusable = |detail: String| EvaluationError::Moments { path: path.to_owned(), detail };
        let file =
            File::open(path).map_err(|source| EvaluationError::Io { action: "open", path: path.to_owned(), source })?;
        let mut archive = ZipArchive::new(BufReader::new(file)).map_err(|error| unusable(error.to_string()))?;
        let mut array = |name: &str, count: u64| -> Result<Vec<f64>, EvaluationError> {
            let unusable = |detail: String| unusable(format!("{name}: {detail}"));
            let mut file = archive.by_name(&format!("{name}.npy")).map_err(|error| match error {
                ZipError::FileNotFound => unusable("there is none; mu and sigma are needed".to_owned()),
                error => unusable(error.to_string()),
            })?;
            let Header { size, shape } = Header::read(&mut file).map_err(unusable)?;
            if shape.iter().try_fold(1u64, |numbers, &side| numbers.checked_mul(side)) != Some(count) {
                let (path, dimensions) = (path.display(), network.dimensions);
                let detail = format!(
                    "{name} in {path} has the shape {shape:?}, and features by {network} have {dimensions} dimensions"
                );
                return Err(EvaluationError::Networks { detail });
            }
            let (length, mut bytes) = (count * size, Vec::new());
            // To its end, where the checksum is looked at; and no further than the shape says.
            file.take(length + 1).read_to_end(&mut bytes).map_err(|error| unusable(error.to_string()))?;
            if bytes.len() as u64 != length {
                return Err(unusable(format!("it does not have the {length} bytes that its shape {shape:?} needs")));
            }
            Ok(match size {
                4 => bytes.as_chunks::<4>().0.iter().map(|&bytes| f64::from(f32::from_le_bytes(bytes))).collect(),
                _ => bytes.as_chunks::<8>().0.iter().map(|&bytes| f64::from_le_bytes(bytes)).collect(),
            })
        };
        let dimensions = network.dimensions as u64;
        let (mean, covariance) = (array("mu", dimensions)?, array("sigma", dimensions * dimensions)?);
        // A covariance is its own transpose, so that it says the same by rows and by columns.
        Self::of(&mean, &covariance).map_err(|error| unusable(error.to_string()))
    }
}

/// What an array's file says before its numbers.
struct Header {
    /// Of a number, in bytes.
    size: u64,
    shape: Vec<u64>,
}

impl Header {
    fn read(file: &mut impl Read) -> Result<Self, String> {
        let [magic @ .., major, _] = bytes::<8>(file)?;
        if magic != MAGIC {
            return Err("it is no .npy file".to_owned());
        }
        let length = match major {
            1 => u64::from(u16::from_le_bytes(bytes(file)?)),
            _ => u64::from(u32::from_le_bytes(bytes(file)?)),
        };
        if length > LONGEST {
            return Err(format!("its description has {length} bytes: it is no array of plain numbers"));
        }
        let mut text = String::new();
        file.take(length).read_to_string(&mut text).map_err(|error| error.to_string())?;
        let after = |key: &str| text.split_once(key).map(|(_, value)| value.trim_start());
        let refused = |what: &str| format!("{what}: {}", text.trim().escape_debug());
        let size = match after("'descr':") {
            Some(kind) if kind.starts_with("'<f4'") => 4,
            Some(kind) if kind.starts_with("'<f8'") => 8,
            _ => return Err(refused("its numbers are neither float32 nor float64")),
        };
        let sides = after("'shape':").and_then(|shape| shape.strip_prefix('(')?.split_once(')'));
        let shape: Option<Vec<u64>> = sides.and_then(|(sides, _)| {
            sides.split(',').map(str::trim).filter(|side| !side.is_empty()).map(|side| side.parse().ok()).collect()
        });
        Ok(Self { size, shape: shape.ok_or_else(|| refused("its shape cannot be read"))? })
    }
}

fn bytes<const N: usize>(file: &mut impl Read) -> Result<[u8; N], String> {
    let mut bytes = [0; N];
    file.read_exact(&mut bytes).map_err(|error| error.to_string())?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::io::{Cursor, Write};

    use zip::write::SimpleFileOptions;
    use zip::{CompressionMethod, ZipWriter};

    use super::*;
    use crate::FeatureStatistics;

    /// An array as NumPy writes it.
    fn npy(kind: &str, shape: &str, content: &[u8]) -> Vec<u8> {
        let header = format!("{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}");
        let header = format!("{header:<117}\n");
        [MAGIC.as_slice(), &[1, 0], &(header.len() as u16).to_le_bytes(), header.as_bytes(), content].concat()
    }

    fn doubles(values: &[f64]) -> Vec<u8> {
        values.iter().flat_map(|value| value.to_le_bytes()).collect()
    }

    fn npz(method: CompressionMethod, arrays: &[(&str, Vec<u8>)]) -> Vec<u8> {
        let mut archive = ZipWriter::new(Cursor::new(Vec::new()));
        for (name, content) in arrays {
            let options = SimpleFileOptions::default().compression_method(method);
            archive.start_file(format!("{name}.npy"), options).unwrap();
            archive.write_all(content).unwrap();
        }
        archive.finish().unwrap().into_inner()
    }

    fn read(bytes: &[u8]) -> Result<FrechetReference, EvaluationError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("published.npz");
        std::fs::write(&path, bytes).unwrap();
        let network =
            NetworkName { network: "n".to_owned(), digest: "d".to_owned(), dimensions: 2, is_inception: false };
        FrechetReference::from_npz(&path, &network)
    }

    #[test]
    fn a_mean_and_a_covariance_are_read_whatever_lies_beside_them() {
        let (mean, covariance) = ([1.0, -2.0], [2.0, 0.5, 0.5, 1.0]);
        let mut other = FeatureStatistics::new(2).unwrap();
        other.push_rows(&[1.0, 2.0, 3.0, 5.0, -1.0, 0.5]).unwrap();
        let expected = FrechetReference::of(&mean, &covariance).unwrap().distance(&other).unwrap();
        let singles: Vec<u8> = mean.iter().flat_map(|value| (*value as f32).to_le_bytes()).collect();
        let arrays = [
            ("labels", npy("<U5", "(1,)", "größe".as_bytes())),
            ("mu", npy("<f4", "(2,)", &singles)),
            ("sigma", npy("<f8", "(2, 2)", &doubles(&covariance))),
        ];
        for method in [CompressionMethod::Stored, CompressionMethod::Deflated] {
            assert_eq!(read(&npz(method, &arrays)).unwrap().distance(&other).unwrap(), expected);
        }
    }

    #[test]
    fn what_cannot_be_used_is_refused_in_words() {
        let mean = ("mu", npy("<f8", "(2,)", &doubles(&[1.0, 2.0])));
        let with = |sigma: Vec<u8>| npz(CompressionMethod::Deflated, &[mean.clone(), ("sigma", sigma)]);
        let sigma = |shape: &str, values: &[f64]| with(npy("<f8", shape, &doubles(values)));
        let whole =
            npz(CompressionMethod::Stored, &[mean.clone(), ("sigma", npy("<f8", "(2, 2)", &doubles(&[1.0; 4])))]);
        // A field of the first record of the archive's list, by its place in the record.
        let record = whole.windows(4).position(|window| window == b"PK\x01\x02").unwrap();
        let changed = |place: usize, value: u8| {
            let mut bytes = whole.clone();
            bytes[record + place] = value;
            bytes
        };
        for (bytes, words) in [
            (b"no zip".to_vec(), "published.npz holds no mean and covariance that can be used"),
            (npz(CompressionMethod::Stored, std::slice::from_ref(&mean)), "sigma: there is none"),
            (changed(8, 1), "mu: "),
            (changed(10, 95), "mu: "),
            (with(b"no array".to_vec()), "it is no .npy file"),
            (with(npy("|O", "(2, 2)", &[0; 32])), "neither float32 nor float64"),
            (with(npy("<f8", "(2, two)", &[0; 32])), "its shape cannot be read"),
            (with(npy("<f8", "(2, 2)", &[0; 31])), "the 32 bytes that its shape [2, 2] needs"),
            (with(npy("<f8", "(2, 2)", &[0; 64])), "the 32 bytes that its shape [2, 2] needs"),
            (sigma("(2, 2)", &[1.0, 0.0, 0.0, f64::NAN]), "NaN or infinity"),
        ] {
            let error = read(&bytes).unwrap_err();
            assert!(matches!(error, EvaluationError::Moments { .. }), "{words}: {error:?}");
            assert!(error.to_string().contains(words), "{words}: {error}");
        }
        let other = read(&sigma("(3, 3)", &[1.0; 9])).unwrap_err();
        assert!(matches!(&other, EvaluationError::Networks { detail } if detail.contains("shape [3, 3]")), "{other}");
    }
}
