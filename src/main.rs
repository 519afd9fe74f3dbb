//! The binary: parse, resolve, dispatch, map exit codes. One file a subcommand under `commands/`; stages that need torch
//! under `stages/`; `watch` shows events.

// `watch::aside` writes there without an end in panic where nobody listens.
#![warn(clippy::print_stderr)]

mod commands;
mod errors;
mod process;
mod settings;
mod stages;
mod watch;
mod words;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    process::one_heap_a_processor();
    process::as_many_files_as_allowed();
    errors::shorten_panics_of_libtorch();
    let arguments = commands::Arguments::parse();
    match errors::attempt(|| commands::dispatch(arguments)) {
        Ok(code) => ExitCode::from(code),
        Err(error) if errors::reader_has_left(&error) => ExitCode::from(errors::OK),
        Err(error) => {
            watch::aside(errors::in_words(&error));
            ExitCode::from(errors::exit_code(&error))
        }
    }
}
