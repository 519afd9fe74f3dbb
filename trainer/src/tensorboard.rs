//! What TensorBoard shows of a run: event files, written by hand.
//!
//! A file is a row of TFRecords, each holding one `Event` in protobuf's encoding:
//!
//! ```text
//! events.out.tfevents.{seconds}.{host}.{process}.{n}
//! ├─ file_version "brain.Event:2"
//! ├─ session_log START at the first step that will be done now
//! └─ summary, summary, …
//!
//! a record:  length u64 · masked CRC-32C of it u32 · data · masked CRC-32C of it u32      (little-endian)
//! ```
//!
//! Readers take a folder's files in the order of their names as one stream. What a killed run wrote past its checkpoint is
//! taken back in two ways. TensorBoard's reader in Python drops all points from a START's step on, though not at a folder's
//! first START, so every file has one (`EventAccumulator`, for scripts, drops only scalars). Its data server, the default,
//! drops the points of a tag whose steps are not below a new one's. So within a tag steps must rise, one value each.
//!
//! Field numbers: `tensorboard/compat/proto/{event,summary,tensor,tensor_shape,types}.proto` of tensorflow/tensorboard.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::TrainError;

/// With what the names of event files begin.
pub(crate) const PREFIX: &str = "events.out.tfevents.";

/// Appends to an event file of its own. What is written becomes visible with [`EventFile::flush`].
#[derive(Debug)]
pub struct EventFile {
    path: PathBuf,
    file: BufWriter<File>,
}

impl EventFile {
    /// Starts a file in `folder` for a run that continues after `start_step` updates, 0 for one that starts anew: points of
    /// later steps (all points, if it starts anew) that lie in the folder's older files are no longer shown.
    pub fn create(folder: &Path, start_step: u64) -> Result<Self, TrainError> {
        static FILES: AtomicU64 = AtomicU64::new(0);
        let failed = |action, path: &Path| {
            let path = path.to_owned();
            move |source| TrainError::Io { action, path, source }
        };
        fs::create_dir_all(folder).map_err(failed("create", folder))?;
        // Behind all others by name, also after a restart within a second or a clock that was set back.
        let mut seconds = now() as u64;
        for entry in fs::read_dir(folder).map_err(failed("list", folder))? {
            let name = entry.map_err(failed("list", folder))?.file_name();
            seconds = seconds.max(seconds_of(&name.to_string_lossy()).map_or(0, |older| older.saturating_add(1)));
        }
        let (process, n) = (std::process::id(), FILES.fetch_add(1, Ordering::Relaxed));
        let path = folder.join(format!("{PREFIX}{seconds:010}.{}.{process}.{n}", host()));
        let file = File::create_new(&path).map_err(failed("create", &path))?;
        let mut events = Self { path, file: BufWriter::new(file) };
        // Event.file_version = 3; Event.session_log = 7 with SessionLog.status = 1, whose START is 1.
        events.event(0, |event| event.bytes(3, b"brain.Event:2"))?;
        // Points *at* START's step go as well, so it is the first step that is still to be done.
        let first = if start_step == 0 { 0 } else { start_step + 1 };
        events.event(first, |event| event.bytes(7, &Message::new().varint(1, 1).0))?;
        events.flush()?;
        Ok(events)
    }

    /// A point of a curve.
    pub fn scalar(&mut self, step: u64, tag: &str, value: f32) -> Result<(), TrainError> {
        // Summary.Value: tag = 1, simple_value = 2, which old and new readers alike take for a scalar.
        self.summary(step, &Message::new().bytes(1, tag.as_bytes()).float(2, value))
    }

    /// A histogram, also shown under Distributions.
    pub fn histogram(&mut self, step: u64, tag: &str, histogram: &Histogram) -> Result<(), TrainError> {
        // [bucket, (left edge, right edge, count)], f64.
        let rows = histogram.edges.windows(2).zip(&histogram.counts);
        let content: Vec<u8> =
            rows.flat_map(|(edges, count)| [edges[0], edges[1], *count as f64]).flat_map(f64::to_le_bytes).collect();
        // TensorProto: dtype = 1 with DT_DOUBLE = 2, tensor_content = 4.
        let tensor = tensor(2, &[histogram.counts.len() as u64, 3]).bytes(4, &content);
        self.tensor(step, tag, "histograms", DATA_CLASS_TENSOR, &tensor)
    }

    /// A picture, as the bytes of a PNG (or any other file that a browser shows), with its size in pixels.
    pub fn image(&mut self, step: u64, tag: &str, width: u32, height: u32, png: &[u8]) -> Result<(), TrainError> {
        let strings = [width.to_string().as_bytes(), height.to_string().as_bytes(), png]
            .iter()
            .fold(tensor(DT_STRING, &[3]), |tensor, string| tensor.bytes(8, string));
        self.tensor(step, tag, "images", DATA_CLASS_BLOB_SEQUENCE, &strings)
    }

    /// A text, shown as Markdown.
    pub fn text(&mut self, step: u64, tag: &str, markdown: &str) -> Result<(), TrainError> {
        let string = tensor(DT_STRING, &[]).bytes(8, markdown.as_bytes());
        self.tensor(step, tag, "text", DATA_CLASS_TENSOR, &string)
    }

    /// Hands everything written so far to the operating system, where TensorBoard sees it.
    pub fn flush(&mut self) -> Result<(), TrainError> {
        let written = self.file.flush();
        self.checked(written)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    fn tensor(&mut self, step: u64, tag: &str, plugin: &str, class: u64, tensor: &Message) -> Result<(), TrainError> {
        // SummaryMetadata: plugin_data = 1, with PluginData.plugin_name = 1; data_class = 4.
        let metadata = Message::new().bytes(1, &Message::new().bytes(1, plugin.as_bytes()).0).varint(4, class);
        // Summary.Value: tag = 1, tensor = 8, metadata = 9.
        self.summary(step, &Message::new().bytes(1, tag.as_bytes()).bytes(8, &tensor.0).bytes(9, &metadata.0))
    }

    fn summary(&mut self, step: u64, value: &Message) -> Result<(), TrainError> {
        // Event.summary = 5, with Summary.value = 1.
        self.event(step, |event| event.bytes(5, &Message::new().bytes(1, &value.0).0))
    }

    fn event(&mut self, step: u64, what: impl FnOnce(Message) -> Message) -> Result<(), TrainError> {
        // Event.wall_time = 1, Event.step = 2.
        let event = what(Message::new().double(1, now()).varint(2, step));
        let written = write_record(&mut self.file, &event.0);
        self.checked(written)
    }

    fn checked(&self, result: io::Result<()>) -> Result<(), TrainError> {
        result.map_err(|source| TrainError::Io { action: "write", path: self.path.clone(), source })
    }
}

/// How many of some values lie where.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Histogram {
    /// Rising, one more than there are counts; none where there was no finite value. A bucket has its left edge and not its
    /// right one; the last has both.
    pub edges: Vec<f64>,
    pub counts: Vec<u64>,
    /// Values that are in no bucket: NaN and the infinities.
    pub left_out: u64,
}

impl Histogram {
    /// `buckets` of one width between the smallest and the largest finite value; a single one, without width, where these
    /// are the same.
    pub fn of(values: &[f32], buckets: usize) -> Self {
        let finite = || values.iter().copied().filter(|value| value.is_finite()).map(f64::from);
        let (low, high) = finite().fold((f64::MAX, f64::MIN), |(low, high), value| (low.min(value), high.max(value)));
        if low > high {
            return Self { left_out: values.len() as u64, ..Self::default() };
        }
        let buckets = if low < high { buckets.max(1) } else { 1 };
        let mut edges: Vec<f64> = (0..buckets).map(|n| low + (high - low) * (n as f64 / buckets as f64)).collect();
        let mut counts = vec![0; buckets];
        for value in finite() {
            counts[edges[1..].partition_point(|edge| *edge <= value)] += 1;
        }
        edges.push(high);
        let left_out = values.len() as u64 - counts.iter().sum::<u64>();
        Self { edges, counts, left_out }
    }
}

// types.proto, DataType.
const DT_STRING: u64 = 7;
// summary.proto, DataClass: what a value must be is told by it, not by the plugin's name.
const DATA_CLASS_TENSOR: u64 = 2;
const DATA_CLASS_BLOB_SEQUENCE: u64 = 3;

/// A `TensorProto` without its values: dtype = 1, tensor_shape = 2 with TensorShapeProto.dim = 2 and Dim.size = 1; to be
/// followed by tensor_content = 4, or by as many string_val = 8 as it has elements.
fn tensor(data_type: u64, shape: &[u64]) -> Message {
    let dimensions =
        shape.iter().fold(Message::new(), |shape, size| shape.bytes(2, &Message::new().varint(1, *size).0));
    Message::new().varint(1, data_type).bytes(2, &dimensions.0)
}

/// A protobuf message as it is written. A field is the varint `number << 3 | wire type` and what that type says: 0 a varint,
/// 1 eight bytes, 2 a length and as many bytes, 5 four bytes (protobuf.dev/programming-guides/encoding).
struct Message(Vec<u8>);

impl Message {
    fn new() -> Self {
        Self(Vec::new())
    }

    fn varint(self, field: u32, value: u64) -> Self {
        self.raw(u64::from(field) << 3).raw(value)
    }

    fn double(self, field: u32, value: f64) -> Self {
        self.raw(u64::from(field) << 3 | 1).appended(&value.to_le_bytes())
    }

    fn float(self, field: u32, value: f32) -> Self {
        self.raw(u64::from(field) << 3 | 5).appended(&value.to_le_bytes())
    }

    /// A string, bytes or a message.
    fn bytes(self, field: u32, value: &[u8]) -> Self {
        self.raw(u64::from(field) << 3 | 2).raw(value.len() as u64).appended(value)
    }

    /// Seven bits a byte, the lowest first; the eighth says that more follow.
    fn raw(mut self, mut value: u64) -> Self {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
        self
    }

    fn appended(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }
}

fn write_record(file: &mut impl Write, data: &[u8]) -> io::Result<()> {
    let length = (data.len() as u64).to_le_bytes();
    file.write_all(&length)?;
    file.write_all(&masked(crc32c(&length)).to_le_bytes())?;
    file.write_all(data)?;
    file.write_all(&masked(crc32c(data)).to_le_bytes())
}

/// TFRecord's checksum of a checksum: turned and shifted, so that data which holds checksums has a good one of its own.
fn masked(crc: u32) -> u32 {
    crc.rotate_right(15).wrapping_add(0xa282_ead8)
}

/// CRC-32 with Castagnoli's polynomial, which is not that of zlib and PNG.
fn crc32c(data: &[u8]) -> u32 {
    const TABLE: [u32; 256] = {
        let mut table = [0; 256];
        let mut n = 0;
        while n < 256 {
            let (mut crc, mut bit) = (n as u32, 0);
            while bit < 8 {
                crc = if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
                bit += 1;
            }
            table[n] = crc;
            n += 1;
        }
        table
    };
    !data.iter().fold(!0, |crc, byte| TABLE[(crc as u8 ^ byte) as usize] ^ crc >> 8)
}

/// Seconds since 1970.
fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

/// The time in an event file's name.
fn seconds_of(name: &str) -> Option<u64> {
    name.strip_prefix(PREFIX)?.split('.').next()?.parse().ok()
}

/// This machine's name, as far as a file's name may hold it. Nothing is read from it.
fn host() -> String {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let kept: String = name.trim().chars().filter(|c| c.is_ascii_alphanumeric() || *c == '-').collect();
    if kept.is_empty() { "host".to_owned() } else { kept }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_those_of_rfc_3720() {
        for (data, crc) in
            [(&b"123456789"[..], 0xe306_9283), (&[0; 32], 0x8a91_36aa), (&[0xff; 32], 0x62a8_ab43), (b"", 0)]
        {
            assert_eq!(crc32c(data), crc);
        }
        // As the first record of a file begins that TensorFlow wrote: 24 bytes.
        let mut record = Vec::new();
        write_record(&mut record, &[7; 24]).unwrap();
        assert_eq!(record[..12], [0x18, 0, 0, 0, 0, 0, 0, 0, 0xa3, 0x7f, 0x4b, 0x22]);
        assert_eq!(record.len(), 24 + 16);
    }

    #[test]
    fn fields_are_encoded_as_protobuf_says() {
        for (message, bytes) in [
            (Message::new().varint(1, 150), &[0x08, 0x96, 0x01][..]),
            (Message::new().varint(2, 0), &[0x10, 0]),
            (Message::new().varint(16, 0x7f), &[0x80, 0x01, 0x7f]),
            (Message::new().varint(1, u64::MAX), &[8, 255, 255, 255, 255, 255, 255, 255, 255, 255, 1]),
            (Message::new().bytes(2, b"testing"), b"\x12\x07testing"),
            (Message::new().float(2, 1.0).double(1, 1.0), b"\x15\0\0\x80\x3f\x09\0\0\0\0\0\0\xf0\x3f"),
        ] {
            assert_eq!(message.0, bytes);
        }
    }

    #[test]
    fn a_histogram_counts_every_value_once() {
        let of = |values: &[f32], buckets| {
            let Histogram { edges, counts, left_out } = Histogram::of(values, buckets);
            (edges, counts, left_out)
        };
        assert_eq!(of(&[0.0, 1.0, 2.0, 3.0, 4.0], 2), (vec![0.0, 2.0, 4.0], vec![2, 3], 0));
        assert_eq!(of(&[3.0, f32::NAN, 1.0, f32::INFINITY, -f32::INFINITY], 1), (vec![1.0, 3.0], vec![2], 3));
        assert_eq!(of(&[1.0, 2.0], 0), (vec![1.0, 2.0], vec![2], 0));
        assert_eq!(of(&[5.0, 5.0], 8), (vec![5.0, 5.0], vec![2], 0));
        assert_eq!(of(&[0.0, -0.0], 8).1, [2]);
        assert_eq!(of(&[], 8), (vec![], vec![], 0));
        assert_eq!(of(&[f32::NAN], 8), (vec![], vec![], 1));
        // The whole range of an f32, and its smallest numbers.
        assert_eq!(of(&[f32::MIN, 0.0, f32::MAX], 4).1, [1, 0, 1, 1]);
        assert_eq!(of(&[0.0, f32::from_bits(1), f32::from_bits(2)], 2).1, [1, 2]);
    }

    #[test]
    fn a_file_comes_after_the_older_ones_by_name() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("events.out.tfevents.4000000000.elsewhere.1.0"), "").unwrap();
        fs::write(folder.path().join("metrics.jsonl"), "").unwrap();
        let made: Vec<PathBuf> =
            (0..12).map(|_| EventFile::create(folder.path(), 0).unwrap().path().to_owned()).collect();
        assert!(made.is_sorted(), "{made:?}");
        assert!(made[0].to_string_lossy().contains("tfevents.4000000001."), "{made:?}");

        let occupied = folder.path().join("metrics.jsonl");
        let error = EventFile::create(&occupied, 0).unwrap_err();
        assert_eq!(error.to_string(), format!("cannot create {}", occupied.display()));
    }
}
