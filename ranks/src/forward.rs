//! Lines of ranks other than the first, so that they do not mix within a line and one sees whose they are.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::process::Child;
use std::thread::JoinHandle;

/// A longer line is cut.
const LONGEST_LINE: u64 = 64 << 10;

/// From what the child writes to standard error, on threads that end with its output.
pub(super) fn lines(rank: usize, child: &mut Child) -> io::Result<Vec<JoinHandle<()>>> {
    let outputs: [Option<Box<dyn Read + Send>>; 2] =
        [child.stdout.take().map(|o| Box::new(o) as _), child.stderr.take().map(|o| Box::new(o) as _)];
    let start = |output| {
        std::thread::Builder::new()
            .name(format!("output-of-rank-{rank}"))
            .spawn(move || copy(rank, BufReader::new(output), || io::stderr().lock()))
    };
    outputs.into_iter().flatten().map(start).collect()
}

fn copy<W: Write>(rank: usize, mut output: impl BufRead, open: impl Fn() -> W) {
    loop {
        let mut line = format!("[{rank}] ").into_bytes();
        let prefix = line.len();
        // An output that cannot be read has ended.
        _ = (&mut output).take(LONGEST_LINE).read_until(b'\n', &mut line);
        if line.len() == prefix {
            return;
        }
        if line.last() != Some(&b'\n') {
            line.push(b'\n');
        }
        // In one go; and if nobody listens the rank must not be held up by it.
        _ = open().write_all(&line);
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    struct Shared<'a>(&'a RefCell<Vec<u8>>);

    impl Write for Shared<'_> {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.borrow_mut().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn each_line_has_its_rank() {
        let written = RefCell::new(Vec::new());
        copy(3, &b"one\n\ntwo \xff\nrest"[..], || Shared(&written));
        assert_eq!(written.into_inner(), b"[3] one\n[3] \n[3] two \xff\n[3] rest\n");
    }
}
