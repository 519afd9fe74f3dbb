//! The binary: parse, resolve, dispatch, map exit codes. One file a subcommand under `commands/`; stages that need torch
//! under `stages/`; `watch` shows events.

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
    let arguments = commands::Arguments::parse();
    match commands::dispatch(arguments) {
        Ok(code) => ExitCode::from(code),
        Err(error) if errors::reader_has_left(&error) => ExitCode::from(errors::OK),
        Err(error) => {
            eprintln!("{}", errors::in_words(&error));
            ExitCode::from(errors::exit_code(&error))
        }
    }
}
