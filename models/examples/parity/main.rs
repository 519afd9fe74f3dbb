//! Compares models with the outputs that their reference implementations gave.
//!
//! ```text
//! cargo run --release -p ferrotype-models --example parity -- DIR…
//! ```
//!
//! Each DIR holds a model (`config.json` and its weights) and `io.safetensors`: inputs, and what the reference made of them.
//! One line a folder; the exit status is 1 when any differs.

#![expect(clippy::print_stdout, reason = "printing is what it is for")]

mod check;
mod hugging_face;
mod mmdit;

use std::path::PathBuf;
use std::process::ExitCode;

fn main() -> ExitCode {
    let folders: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    if folders.is_empty() {
        eprintln!("usage: parity DIR…    (each with config.json, weights and io.safetensors)");
        return ExitCode::from(2);
    }
    let mut failed = false;
    for folder in folders {
        let name =
            folder.file_name().map_or_else(|| folder.display().to_string(), |n| n.to_string_lossy().into_owned());
        match check::folder(&folder) {
            Ok(compared) => {
                let good = !compared.is_empty() && compared.iter().all(check::Compared::is_ok);
                failed |= !good;
                let outputs: Vec<String> = compared.iter().map(ToString::to_string).collect();
                println!("{name:<20} {}  {}", if good { "ok  " } else { "FAIL" }, outputs.join("  "));
            }
            Err(error) => {
                failed = true;
                let causes = std::iter::successors(Some(&*error as &dyn std::error::Error), |cause| cause.source());
                let causes: Vec<String> = causes.map(ToString::to_string).collect();
                println!("{name:<20} FAIL  {}", causes.join(": "));
            }
        }
    }
    ExitCode::from(u8::from(failed))
}
