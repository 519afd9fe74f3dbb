//! Makes recorded samplings of the reference implementation again, and says how far the latents lie apart.
//!
//! `cargo run --release -p ferrotype-sampler --example replay_sampling -- DIR…`

#![expect(clippy::print_stdout, reason = "it is there to print")]

use std::path::Path;
use std::process::ExitCode;

use models::device;
use sampler::replay::replay;

/// The largest difference of an element that is as good as none.
const TOLERANCE: f64 = 2e-4;

fn main() -> ExitCode {
    let folders: Vec<String> = std::env::args().skip(1).collect();
    if folders.is_empty() {
        eprintln!("usage: replay_sampling DIR…");
        return ExitCode::from(2);
    }
    let mut all = true;
    for folder in &folders {
        let device = device::named(None, 0);
        match device
            .map_err(Into::into)
            .and_then(|device| Ok::<_, Box<dyn std::error::Error>>(replay(Path::new(folder), device)?))
        {
            Ok(replayed) => {
                all &= !replayed.is_empty();
                for sampling in replayed {
                    let difference = sampling.difference();
                    // Not a number is not at most anything.
                    let is_good = difference <= TOLERANCE;
                    all &= is_good;
                    println!("{folder}: {} {difference:.1e}{}", sampling.sampler, if is_good { "" } else { " (FAIL)" });
                }
            }
            Err(error) => {
                all = false;
                println!("{folder}: {error}");
            }
        }
    }
    if all { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
