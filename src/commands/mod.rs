//! The command line: one file a subcommand.

mod convert;
#[cfg(feature = "pipeline")]
mod demo;
mod encode;
mod evaluate;
#[cfg(feature = "pipeline")]
mod inspect;
#[cfg(feature = "pipeline")]
mod manifest;
mod sample;
mod train;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// From raw web images to a trained text-to-image model, by declarative manifests.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 110)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the whole house on a small web of its own: download, filter, bucket, index, train, sample, evaluate.
    #[cfg(feature = "pipeline")]
    Demo(demo::Demo),
    /// Say what `run` would do, and why.
    #[cfg(feature = "pipeline")]
    Plan(manifest::Plan),
    /// Make whatever a manifest asks for and is not there yet.
    #[cfg(feature = "pipeline")]
    Run(manifest::Run),
    /// Say what a workdir holds, without looking at any data.
    #[cfg(feature = "pipeline")]
    Status(manifest::Status),
    /// Write one page about a workdir: counts, refused rows, curves, pictures.
    #[cfg(feature = "pipeline")]
    Report(manifest::Report),
    /// Draw a manifest's stages, with what is committed of each.
    #[cfg(feature = "pipeline")]
    Graph(inspect::Graph),
    /// Tell a row's story through every stage, or show what a stage refused.
    #[cfg(feature = "pipeline")]
    Explain(inspect::Explain),
    /// Read everything that is committed and compare it with its records.
    #[cfg(feature = "pipeline")]
    Verify(inspect::Verify),
    /// List, and delete if asked, what the manifest no longer needs.
    #[cfg(feature = "pipeline")]
    Gc(inspect::Gc),
    /// Ask SQL of everything a workdir holds.
    #[cfg(feature = "pipeline")]
    Query(inspect::Query),
    /// Print the JSON schema of manifests.
    #[cfg(feature = "pipeline")]
    Schema,
    /// Train a model from a bucket index, without a manifest.
    Train(train::Train),
    /// Make pictures from a checkpoint.
    Sample(sample::Sample),
    /// Encode texts and pictures as a training would, to look at what comes out.
    Encode(encode::Encode),
    /// List weights, check them against their model, write them in another format.
    Convert(convert::Convert),
    /// Put numbers on a checkpoint's pictures.
    Evaluate(evaluate::Evaluate),
}

/// Runs a command; returns the exit code.
pub(crate) fn dispatch(arguments: Arguments) -> Result<u8> {
    match arguments.command {
        #[cfg(feature = "pipeline")]
        Command::Demo(demo) => demo.run(),
        #[cfg(feature = "pipeline")]
        Command::Plan(plan) => plan.run(),
        #[cfg(feature = "pipeline")]
        Command::Run(run) => run.run(),
        #[cfg(feature = "pipeline")]
        Command::Status(status) => status.run(),
        #[cfg(feature = "pipeline")]
        Command::Report(report) => report.run(),
        #[cfg(feature = "pipeline")]
        Command::Graph(graph) => graph.run(),
        #[cfg(feature = "pipeline")]
        Command::Explain(explain) => explain.run(),
        #[cfg(feature = "pipeline")]
        Command::Verify(verify) => verify.run(),
        #[cfg(feature = "pipeline")]
        Command::Gc(gc) => gc.run(),
        #[cfg(feature = "pipeline")]
        Command::Query(query) => query.run(),
        #[cfg(feature = "pipeline")]
        Command::Schema => manifest::schema(),
        Command::Train(train) => train.run(),
        Command::Sample(sample) => sample.run(),
        Command::Encode(encode) => encode.run(),
        Command::Convert(convert) => convert.run(),
        Command::Evaluate(evaluate) => evaluate.run(),
    }
}
