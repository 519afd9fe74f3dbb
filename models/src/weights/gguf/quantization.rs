//! ggml's blocks of small integers, turned into float32.

use half::f16;

/// How ggml packs a row of numbers: blocks of 32 (the K types: 256) small integers with a scale, and in some an offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quantization {
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q4K,
    Q6K,
}

impl std::fmt::Display for Quantization {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
            Self::Q5_0 => "Q5_0",
            Self::Q5_1 => "Q5_1",
            Self::Q8_0 => "Q8_0",
            Self::Q4K => "Q4_K",
            Self::Q6K => "Q6_K",
        })
    }
}

impl Quantization {
    /// The type with ggml's number `id`, if it is one of these.
    pub(super) fn from_id(id: u32) -> Option<Self> {
        Some(match id {
            2 => Self::Q4_0,
            3 => Self::Q4_1,
            6 => Self::Q5_0,
            7 => Self::Q5_1,
            8 => Self::Q8_0,
            12 => Self::Q4K,
            14 => Self::Q6K,
            _ => return None,
        })
    }

    /// Numbers in a block. A tensor's rows are whole blocks.
    pub fn block_elements(self) -> usize {
        match self {
            Self::Q4K | Self::Q6K => 256,
            _ => 32,
        }
    }

    /// Bytes in a block.
    pub fn block_bytes(self) -> usize {
        match self {
            Self::Q4_0 => 18,
            Self::Q4_1 => 20,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q8_0 => 34,
            Self::Q4K => 144,
            Self::Q6K => 210,
        }
    }

    /// The numbers of whole blocks, in order; bytes after the last whole block are left out. The arithmetic is ggml's, in
    /// float32 and in its order, so every bit agrees with its own.
    pub(in crate::weights) fn dequantize(self, bytes: &[u8]) -> Vec<f32> {
        match self {
            Self::Q4_0 => blocks(bytes, q4_0),
            Self::Q4_1 => blocks(bytes, q4_1),
            Self::Q5_0 => blocks(bytes, q5_0),
            Self::Q5_1 => blocks(bytes, q5_1),
            Self::Q8_0 => blocks(bytes, q8_0),
            Self::Q4K => blocks(bytes, q4_k),
            Self::Q6K => blocks(bytes, q6_k),
        }
    }
}

fn blocks<const BYTES: usize>(bytes: &[u8], unpack: impl Fn(&[u8; BYTES], &mut Vec<f32>)) -> Vec<f32> {
    let mut values = Vec::with_capacity(bytes.len() * 2);
    for block in bytes.as_chunks().0 {
        unpack(block, &mut values);
    }
    values
}

fn float(low: u8, high: u8) -> f32 {
    f16::from_le_bytes([low, high]).to_f32()
}

/// The 32 integers of 16 bytes: all lower halves, then all upper halves.
fn nibbles(codes: &[u8; 16]) -> impl Iterator<Item = u8> {
    codes.iter().map(|code| code & 0x0f).chain(codes.iter().map(|code| code >> 4))
}

/// The same with a fifth bit from `upper`, the first integer's in its lowest.
fn five_bits(upper: [u8; 4], codes: &[u8; 16]) -> impl Iterator<Item = u8> {
    let upper = u32::from_le_bytes(upper);
    (0..).zip(nibbles(codes)).map(move |(position, low): (u32, u8)| low | ((((upper >> position) & 1) as u8) << 4))
}

fn q4_0([d0, d1, codes @ ..]: &[u8; 18], values: &mut Vec<f32>) {
    let scale = float(*d0, *d1);
    values.extend(nibbles(codes).map(|code| scale * (f32::from(code) - 8.0)));
}

fn q4_1([d0, d1, m0, m1, codes @ ..]: &[u8; 20], values: &mut Vec<f32>) {
    let (scale, offset) = (float(*d0, *d1), float(*m0, *m1));
    values.extend(nibbles(codes).map(|code| scale * f32::from(code) + offset));
}

fn q5_0([d0, d1, h0, h1, h2, h3, codes @ ..]: &[u8; 22], values: &mut Vec<f32>) {
    let scale = float(*d0, *d1);
    values.extend(five_bits([*h0, *h1, *h2, *h3], codes).map(|code| scale * (f32::from(code) - 16.0)));
}

fn q5_1([d0, d1, m0, m1, h0, h1, h2, h3, codes @ ..]: &[u8; 24], values: &mut Vec<f32>) {
    let (scale, offset) = (float(*d0, *d1), float(*m0, *m1));
    values.extend(five_bits([*h0, *h1, *h2, *h3], codes).map(|code| scale * f32::from(code) + offset));
}

fn q8_0([d0, d1, codes @ ..]: &[u8; 34], values: &mut Vec<f32>) {
    let scale = float(*d0, *d1);
    values.extend(codes.iter().map(|code| f32::from(code.cast_signed()) * scale));
}

/// Eight runs of 32, each with a scale and an offset of six bits. The first four of either are the lower bits of their byte;
/// the last four are put together from halves of bytes 8 to 11 and the spare upper bits of bytes 0 to 7.
fn q4_k([d0, d1, m0, m1, rest @ ..]: &[u8; 144], values: &mut Vec<f32>) {
    let (scale, offset) = (float(*d0, *d1), float(*m0, *m1));
    let (packed, codes) = rest.split_at(12);
    let (scales, offsets, both) = (&packed[..4], &packed[4..8], &packed[8..]);
    for run in 0..8 {
        let (scale_bits, offset_bits) = if run < 4 {
            (scales[run] & 0x3f, offsets[run] & 0x3f)
        } else {
            let (part, of) = (both[run - 4], run - 4);
            ((part & 0x0f) | ((scales[of] >> 2) & 0x30), (part >> 4) | ((offsets[of] >> 2) & 0x30))
        };
        let (scale, offset) = (scale * f32::from(scale_bits), offset * f32::from(offset_bits));
        // Two runs share 32 bytes: the even one has their lower halves.
        let shift = 4 * (run % 2);
        let bytes = &codes[run / 2 * 32..][..32];
        values.extend(bytes.iter().map(|byte| scale * f32::from((byte >> shift) & 0x0f) - offset));
    }
}

/// Eight runs of 32: four bits of each integer from the first 128 bytes, two from the next 64, and a scale for every 16.
fn q6_k(block: &[u8; 210], values: &mut Vec<f32>) {
    let (lower, rest) = block.split_at(128);
    let (upper, rest) = rest.split_at(64);
    let (scales, scale) = rest.split_at(16);
    let scale = float(scale[0], scale[1]);
    for run in 0..8 {
        let (half, quarter) = (run / 4, run % 4);
        let low = &lower[half * 64 + quarter % 2 * 32..][..32];
        let high = &upper[half * 32..][..32];
        for (position, (low, high)) in low.iter().zip(high).enumerate() {
            let low = (low >> (quarter / 2 * 4)) & 0x0f;
            let code = low | (((high >> (2 * quarter)) & 3) << 4);
            let scale = scale * f32::from(scales[run * 2 + position / 16].cast_signed());
            values.push(scale * (f32::from(code) - 32.0));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_by_hand() {
        // Scale 0.5 (0x3800 in half precision); codes 0 and 15 in the first byte, 8 and 8 in the others.
        let mut block = vec![0x00, 0x38, 0xf0];
        block.extend([0x88; 15]);
        let values = Quantization::Q4_0.dequantize(&block);
        assert_eq!((values.len(), values[0], values[16]), (32, -4.0, 3.5));
        assert!(values.iter().enumerate().all(|(i, &v)| i % 16 == 0 || v == 0.0), "{values:?}");
        // Half a block is left out.
        assert!(Quantization::Q4_0.dequantize(&block[..17]).is_empty());
    }

    /// Two blocks of each type against gguf 0.19's `dequantize`: the bits of five numbers, and of all of them together.
    #[test]
    #[rustfmt::skip]
    fn every_bit_is_that_of_ggml() {
        type Case = (Quantization, usize, Option<usize>, [u32; 5], u32);
        let cases: [Case; 7] = [
            (Quantization::Q4_0, 0, None, [0xbd17_2000, 0x3cc9_8000, 0xbc49_8000, 0x3c49_8000, 0xbd7b_e000], 0x6ea6_2800),
            (Quantization::Q4_1, 0, Some(2), [0xbe3e_1800, 0xbea4_5000, 0xbe63_e000, 0xbeb0_e800, 0xbe63_e000], 0x56b1_8367),
            (Quantization::Q5_0, 0, None, [0x3de2_b000, 0xbe23_b800, 0x3c49_8000, 0xbd7b_e000, 0xbdfb_e000], 0xf6f9_2df1),
            (Quantization::Q5_1, 0, Some(2), [0xbd99_8000, 0xbc5c_8000, 0xbe9e_0400, 0x3c36_8000, 0x3c36_8000], 0xabb3_03e2),
            (Quantization::Q8_0, 0, None, [0x3f85_cf00, 0x3fc0_0e00, 0xbf0a_8800, 0x3f8a_8800, 0xbe9d_6c00], 0xc4b7_1d57),
            (Quantization::Q4K, 0, Some(2), [0x41b5_1010, 0x41c4_5020, 0x4103_ab80, 0x41b2_2500, 0x41af_2670], 0x397e_2b0b),
            (Quantization::Q6K, 208, None, [0xc0ab_3240, 0x4188_f500, 0xc230_e720, 0x0000_0000, 0x4203_3388], 0x97d1_75ff),
        ];
        for (quantization, scale_at, offset_at, some, all) in cases {
            let size = quantization.block_bytes();
            let mut bytes: Vec<u8> = (0..2 * size).map(|i| ((i * 37 + 11) % 251) as u8).collect();
            for block in bytes.chunks_exact_mut(size) {
                block[scale_at..scale_at + 2].copy_from_slice(&f16::from_f32(0.0123).to_le_bytes());
                if let Some(at) = offset_at {
                    block[at..at + 2].copy_from_slice(&f16::from_f32(-0.37).to_le_bytes());
                }
            }
            let bits: Vec<u32> = quantization.dequantize(&bytes).into_iter().map(f32::to_bits).collect();
            let count = 2 * quantization.block_elements();
            assert_eq!(bits.len(), count);
            assert_eq!([0, 1, count / 4 + 1, count / 2, count - 1].map(|i| bits[i]), some, "{quantization}");
            assert_eq!(bits.iter().fold(0u32, |sum, bits| sum.rotate_left(5) ^ bits), all, "{quantization}");
        }
    }
}
