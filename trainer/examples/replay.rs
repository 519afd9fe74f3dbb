//! Makes recorded trainings of the reference implementation again, and says how far the results lie apart.
//!
//! `cargo run --release -p ferrotype-trainer --example replay -- [--device cuda] DIR…`

#![expect(clippy::print_stdout, reason = "it is there to print")]

use std::path::Path;
use std::process::ExitCode;

use models::device;
use tch::Device;
use trainer::replay::{Beside, Worst, replay};

/// The largest difference of a weight that is as good as none.
const TOLERANCE: f64 = 2e-5;

fn main() -> ExitCode {
    let mut folders: Vec<String> = std::env::args().skip(1).collect();
    let mut device = Ok(Device::Cpu);
    if folders.first().is_some_and(|first| first == "--device") && folders.len() > 1 {
        device = device::named(folders.get(1).map(String::as_str), 0);
        folders.drain(..2);
    }
    let device = match device {
        Ok(device) if !folders.is_empty() => device,
        other => {
            eprintln!(
                "usage: replay [--device cpu|cuda] DIR…{}",
                other.err().map(|e| format!(": {e}")).unwrap_or_default()
            );
            return ExitCode::from(2);
        }
    };
    let mut all = true;
    for folder in &folders {
        // Activations kept, and made again.
        for (how, recompute) in [("kept", 0), ("recomputed", u32::MAX)] {
            match replay(Path::new(folder), recompute, device) {
                Ok(replayed) => {
                    let numbers = |all: &[Beside]| {
                        let texts = all.iter().map(|b| format!("{:.7} ({:.1e})", b.ours, b.difference()));
                        texts.collect::<Vec<_>>().join("  ")
                    };
                    let worst = |what: &str, Worst { name, difference }: &Worst| {
                        println!("  {what}: largest difference {difference:.1e}, of {name}");
                    };
                    println!("{folder}, activations {how}");
                    println!("  losses: {}", numbers(&replayed.losses));
                    println!("  gradient norms: {}", numbers(&replayed.gradient_norms));
                    worst("weights", &replayed.weights);
                    worst("average", &replayed.average);
                    let differences = [replayed.weights.difference, replayed.average.difference];
                    all &= differences.into_iter().all(|difference| difference <= TOLERANCE);
                }
                Err(error) => {
                    all = false;
                    let causes = std::iter::successors(std::error::Error::source(&error), |cause| cause.source());
                    let said: Vec<String> = causes.map(ToString::to_string).collect();
                    println!("{folder}: {error}: {}", said.join(": "));
                }
            }
        }
    }
    println!("{}", if all { "all within 2e-5" } else { "FAILED" });
    ExitCode::from(u8::from(!all))
}
