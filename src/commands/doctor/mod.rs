//! `doctor`: whether this machine can do the work, and what to do where it cannot.
//!
//! One file a topic. Each check is bounded in time and changes nothing: files that it writes in the workdir are gone afterwards.

mod libraries;
mod limits;
mod network;
mod storage;

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::Args;
use serde::Serialize;
use serde_json::json;

use crate::errors::{FAILED, OK};

#[derive(Debug, Args)]
pub(crate) struct Doctor {
    /// Where results are to go; if it is not there yet, the folder above it is looked at. Stores (s3://…) are not.
    #[arg(long, value_name = "DIR", default_value = ".")]
    workdir: PathBuf,
    /// The host name to look up.
    #[arg(long, value_name = "NAME", default_value = "example.com")]
    resolve: String,
    /// Print the findings as JSON.
    #[arg(long)]
    json: bool,
}

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Verdict {
    Ok,
    /// Worth knowing; nothing fails because of it alone.
    Note,
    /// Something will fail.
    Problem,
}

/// What a check found, and what to do about it.
#[derive(Debug, Serialize)]
struct Finding {
    check: &'static str,
    verdict: Verdict,
    found: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    what_to_do: Option<String>,
}

impl Finding {
    fn ok(check: &'static str, found: impl Into<String>) -> Self {
        Self { check, verdict: Verdict::Ok, found: found.into(), what_to_do: None }
    }

    fn note(check: &'static str, found: impl Into<String>) -> Self {
        Self { verdict: Verdict::Note, ..Self::ok(check, found) }
    }

    fn problem(check: &'static str, found: impl Into<String>, what_to_do: impl Into<String>) -> Self {
        Self { verdict: Verdict::Problem, ..Self::ok(check, found) }.advise(what_to_do)
    }

    fn advise(self, what_to_do: impl Into<String>) -> Self {
        Self { what_to_do: Some(what_to_do.into()), ..self }
    }
}

impl Doctor {
    pub(crate) fn run(&self) -> Result<u8> {
        let checks: [&dyn Fn() -> Vec<Finding>; 6] = [
            &libraries::look,
            &|| storage::look(&self.workdir),
            &|| vec![limits::descriptors()],
            &|| vec![network::names(&self.resolve)],
            &|| vec![storage::clock(&self.workdir)],
            &|| vec![limits::memory(), limits::cores()],
        ];
        let mut out = std::io::stdout().lock();
        let mut findings = Vec::new();
        for check in checks {
            for finding in check() {
                if !self.json {
                    show(&finding, &mut out)?;
                }
                findings.push(finding);
            }
        }
        let problems = findings.iter().filter(|finding| finding.verdict == Verdict::Problem).count();
        if self.json {
            writeln!(out, "{:#}", json!({ "problems": problems, "checks": findings }))?;
        } else {
            let verdict = match problems {
                0 => "No problem found.".to_owned(),
                1 => "1 problem.".to_owned(),
                many => format!("{many} problems."),
            };
            writeln!(out, "{verdict}")?;
        }
        Ok(if problems == 0 { OK } else { FAILED })
    }
}

fn show(finding: &Finding, out: &mut impl Write) -> std::io::Result<()> {
    let verdict = match finding.verdict {
        Verdict::Ok => "ok",
        Verdict::Note => "note",
        Verdict::Problem => "problem",
    };
    writeln!(out, "{verdict:<8} {:<12} {}", finding.check, finding.found)?;
    finding.what_to_do.iter().try_for_each(|advice| writeln!(out, "{:<21} → {advice}", ""))
}

/// What another program prints, if it ends well within `patience`.
fn output_of(command: &mut Command, patience: Duration) -> Option<String> {
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().ok()?;
    let deadline = Instant::now() + patience;
    loop {
        match child.try_wait() {
            Ok(Some(status)) if status.success() => {
                let output = child.wait_with_output().ok()?;
                return Some(String::from_utf8_lossy(&output.stdout).into_owned());
            }
            Ok(None) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(10)),
            _ => {
                // Whether it can still be stopped is no concern of the answer.
                let _ = child.kill();
                return None;
            }
        }
    }
}
