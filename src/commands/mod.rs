//! The command line: one file a subcommand.

#[cfg(feature = "pipeline")]
mod buckets;
mod caption;
#[cfg(feature = "pipeline")]
mod captions;
#[cfg(feature = "cluster")]
mod cluster;
mod completions;
mod convert;
#[cfg(feature = "pipeline")]
mod demo;
mod doctor;
mod encode;
mod evaluate;
#[cfg(feature = "pipeline")]
mod fetch;
#[cfg(feature = "pipeline")]
mod init;
#[cfg(feature = "pipeline")]
mod inspect;
mod launch;
mod loader;
#[cfg(feature = "pipeline")]
mod manifest;
#[cfg(feature = "pipeline")]
mod plan;
#[cfg(feature = "pipeline")]
mod run;
mod sample;
mod serve;
#[cfg(feature = "pipeline")]
mod status;
#[cfg(feature = "pipeline")]
mod submit;
mod train;
#[cfg(feature = "pipeline")]
mod worker;

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
    /// Write a manifest to start from.
    #[cfg(feature = "pipeline")]
    Init(init::Init),
    /// Say what `run` would do, and why.
    #[cfg(feature = "pipeline")]
    Plan(plan::Plan),
    /// Make whatever a manifest asks for and is not there yet.
    #[cfg(feature = "pipeline")]
    Run(run::Run),
    /// Fetch again rows that a stage refused; what passes flows on, with its key unchanged.
    #[cfg(feature = "pipeline")]
    Retry(run::Retry),
    /// Say what a workdir holds and who is at work on it, without looking at any data.
    #[cfg(feature = "pipeline")]
    Status(status::Status),
    /// Submit what a manifest lacks to Slurm: an array of jobs a stage, in their order of dependence.
    #[cfg(feature = "pipeline")]
    Submit(submit::Submit),
    /// Cancel the Slurm jobs of a manifest.
    #[cfg(feature = "pipeline")]
    Cancel(submit::Cancel),
    /// Make a part of a manifest's partitions, as one of several workers that a scheduler starts.
    #[cfg(feature = "pipeline")]
    Worker(worker::Worker),
    /// Be the scheduler of a Ballista cluster, which gives partitions to executors (`run --executor`).
    #[cfg(feature = "cluster")]
    Scheduler(cluster::Scheduler),
    /// Be an executor of a Ballista cluster, which makes partitions of whatever manifest it is asked for.
    #[cfg(feature = "cluster")]
    Executor(cluster::Executor),
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
    /// Bring a model's files, or any others, from the Hugging Face Hub, a URL or a store.
    #[cfg(feature = "pipeline")]
    Fetch(fetch::Fetch),
    /// Say which buckets images would fall into, before any is resized.
    #[cfg(feature = "pipeline")]
    Buckets(buckets::Buckets),
    /// Write a recaption stage's questions as files for `vllm run-batch`, and take its results.
    #[cfg(feature = "pipeline")]
    Captions(captions::Captions),
    /// Ask SQL of everything a workdir holds.
    #[cfg(feature = "pipeline")]
    Query(inspect::Query),
    /// Print the JSON schema of manifests.
    #[cfg(feature = "pipeline")]
    Schema,
    /// Try prompts on a few pictures, with times and token counts.
    Caption(Box<caption::Caption>),
    /// Say what a training would read from a bucket index, and how fast.
    Loader(loader::Loader),
    /// Start several processes that train together on this machine.
    Launch(launch::Launch),
    /// Train a model from a bucket index, without a manifest.
    Train(train::Train),
    /// Make pictures from a checkpoint.
    Sample(Box<sample::Sample>),
    /// Answer with pictures over HTTP: the OpenAI images API, and a web page.
    Serve(Box<serve::Serve>),
    /// Encode texts and pictures as a training would, to look at what comes out.
    Encode(encode::Encode),
    /// List weights, check them against their model, write them in another format.
    Convert(convert::Convert),
    /// Put numbers on a checkpoint's pictures.
    Evaluate(Box<evaluate::Evaluate>),
    /// Look whether this machine can do the work, and say what to do where it cannot.
    Doctor(doctor::Doctor),
    /// Print a shell's completions of these commands.
    Completions(completions::Completions),
}

/// Runs a command; returns the exit code.
pub(crate) fn dispatch(arguments: Arguments) -> Result<u8> {
    match arguments.command {
        #[cfg(feature = "pipeline")]
        Command::Demo(demo) => demo.run(),
        #[cfg(feature = "pipeline")]
        Command::Init(init) => init.run(),
        #[cfg(feature = "pipeline")]
        Command::Plan(plan) => plan.run(),
        #[cfg(feature = "pipeline")]
        Command::Run(run) => run.run(),
        #[cfg(feature = "pipeline")]
        Command::Retry(retry) => retry.run(),
        #[cfg(feature = "pipeline")]
        Command::Status(status) => status.run(),
        #[cfg(feature = "cluster")]
        Command::Scheduler(scheduler) => scheduler.run(),
        #[cfg(feature = "cluster")]
        Command::Executor(executor) => executor.run(),
        #[cfg(feature = "pipeline")]
        Command::Report(report) => report.run(),
        #[cfg(feature = "pipeline")]
        Command::Submit(submit) => submit.run(),
        #[cfg(feature = "pipeline")]
        Command::Cancel(cancel) => cancel.run(),
        #[cfg(feature = "pipeline")]
        Command::Worker(worker) => worker.run(),
        #[cfg(feature = "pipeline")]
        Command::Graph(graph) => graph.run(),
        #[cfg(feature = "pipeline")]
        Command::Explain(explain) => explain.run(),
        #[cfg(feature = "pipeline")]
        Command::Verify(verify) => verify.run(),
        #[cfg(feature = "pipeline")]
        Command::Gc(gc) => gc.run(),
        #[cfg(feature = "pipeline")]
        Command::Buckets(buckets) => buckets.run(),
        #[cfg(feature = "pipeline")]
        Command::Fetch(fetch) => fetch.run(),
        #[cfg(feature = "pipeline")]
        Command::Query(query) => query.run(),
        #[cfg(feature = "pipeline")]
        Command::Schema => manifest::schema(),
        Command::Caption(caption) => caption.run(),
        #[cfg(feature = "pipeline")]
        Command::Captions(captions) => captions.run(),
        Command::Loader(loader) => loader.run(),
        Command::Launch(launch) => launch.run(),
        Command::Train(train) => train.run(),
        Command::Sample(sample) => sample.run(),
        Command::Serve(serve) => serve.run(),
        Command::Encode(encode) => encode.run(),
        Command::Convert(convert) => convert.run(),
        Command::Evaluate(evaluate) => evaluate.run(),
        Command::Doctor(doctor) => doctor.run(),
        Command::Completions(completions) => completions.run(),
    }
}
