//! From the bytes that came to the picture that is kept: hashes compared, the image checked or resized, its size read.

use std::fmt::Write as _;

use sha2::Digest;

use super::network::Refusal;
use super::parameters::{Hash, Semantics, VerifyHash};
use picture::{ResizeError, perceptual_hash};

/// A picture as it is kept.
#[derive(Clone, Debug, Default)]
pub(super) struct Picture {
    pub(super) bytes: Vec<u8>,
    /// Pixels, upright.
    pub(super) width: u32,
    pub(super) height: u32,
    /// As served.
    pub(super) original_width: u32,
    pub(super) original_height: u32,
    /// Of the bytes as served.
    pub(super) hash: Option<String>,
    pub(super) phash: Option<String>,
    pub(super) exif: Option<String>,
    /// What happened on the way.
    pub(super) observed: Vec<String>,
}

/// What the list says of a row's bytes.
#[derive(Clone, Debug, Default)]
pub(super) struct Expected {
    pub(super) hash: Option<String>,
    pub(super) phash: Option<String>,
}

/// Whether [`prepare`] computes so little that it need not be kept from the threads of the network.
pub(super) fn is_light(semantics: &Semantics) -> bool {
    semantics.resize.keeps_bytes() && semantics.check == picture::Check::Header && !semantics.compute_phash
}

/// Makes the picture of what was served.
pub(super) fn prepare(
    bytes: Vec<u8>,
    expected: &Expected,
    mut observed: Vec<String>,
    semantics: &Semantics,
) -> Result<Picture, Refusal> {
    let hash = hexadecimal(semantics.compute_hash, &bytes);
    if let Some(verify) = &semantics.verify_hash {
        observed.extend(verdict(&bytes, expected, verify, semantics.max_pixels)?.map(str::to_owned));
    }
    let exif = if semantics.extract_exif { picture::exif(&bytes) } else { None };
    let phash = if semantics.compute_phash { Some(perceptual(&bytes, semantics.max_pixels)?) } else { None };
    let phash = phash.map(|hash| format!("{hash:016x}"));
    let resized = semantics.resize.apply(bytes, semantics.check, semantics.max_pixels).map_err(|error| of(&error))?;
    Ok(Picture {
        bytes: resized.bytes,
        width: resized.width,
        height: resized.height,
        original_width: resized.original_width,
        original_height: resized.original_height,
        hash,
        phash,
        exif,
        observed,
    })
}

fn of(error: &ResizeError) -> Refusal {
    Refusal::picture(error.reason(), error)
}

fn perceptual(bytes: &[u8], most_pixels: u64) -> Result<u64, Refusal> {
    let image =
        picture::decode(bytes, most_pixels).map_err(|error| Refusal::picture(error.reason(), error.to_string()))?;
    Ok(perceptual_hash(&image))
}

/// Compares with what the list says: what to note of a row that passes.
fn verdict(
    bytes: &[u8],
    expected: &Expected,
    verify: &VerifyHash,
    most_pixels: u64,
) -> Result<Option<&'static str>, Refusal> {
    let Some(wanted) = expected.hash.as_deref().map(str::trim).filter(|hash| !hash.is_empty()) else {
        return Ok(Some("hash not in the list"));
    };
    let found = hexadecimal(verify.kind, bytes).unwrap_or_default();
    if found.eq_ignore_ascii_case(wanted) {
        return Ok(Some("hash exact"));
    }
    // img2dataset's word.
    let mismatch = Refusal::network("hash_mismatch", "hash mismatch");
    let wanted = expected.phash.as_deref().and_then(|text| u64::from_str_radix(text.trim(), 16).ok());
    let Some(wanted) = wanted else { return Err(mismatch) };
    let distance = (perceptual(bytes, most_pixels)? ^ wanted).count_ones();
    if distance <= verify.distance { Ok(Some("hash of other bytes, same picture")) } else { Err(mismatch) }
}

fn hexadecimal(hash: Hash, bytes: &[u8]) -> Option<String> {
    fn text(digest: &[u8]) -> String {
        digest.iter().fold(String::with_capacity(2 * digest.len()), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
    }
    match hash {
        Hash::Sha256 => Some(text(&sha2::Sha256::digest(bytes))),
        Hash::Sha512 => Some(text(&sha2::Sha512::digest(bytes))),
        Hash::Md5 => Some(text(&md5::Md5::digest(bytes))),
        Hash::None => None,
    }
}
