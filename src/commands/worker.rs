//! `worker`: one of several processes that make a manifest's partitions, started by a scheduler.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Result, bail};
use clap::Args;
use cluster::slurm::Here;
use pipeline::plan::{Part, Plan, Selection, Share};
use pipeline::run::{Options, RunError, assist, run};
use pipeline::stage::Cancel;
use ranks::World;
use shards::event::RunOutcome;

use super::manifest::{Budget, Source};
use crate::errors::{FAILED, INTERRUPTED, OK, Usage};
use crate::settings::{at_end_of_time, cancelled_by_interrupt};
use crate::stages;
use crate::watch::{self, Watch};

#[derive(Debug, Args)]
pub(crate) struct Worker {
    #[command(flatten)]
    source: Source,
    /// Only this stage; may be given more than once. What it reads must be there.
    #[arg(long, value_name = "STAGE")]
    stage: Vec<String>,
    /// Only the partitions whose number leaves K when it is divided by N.
    #[arg(long, value_name = "K/N", requires = "stage", conflicts_with_all = ["survey", "prefer"])]
    share: Option<Share>,
    /// Only the stage's survey, which its partitions wait for.
    #[arg(long, requires = "stage")]
    survey: bool,
    /// All partitions, but those whose number leaves K when it is divided by N before others: workers that are told different K
    /// seldom want the same one.
    #[arg(long, value_name = "K/N")]
    prefer: Option<Share>,
    /// Make the stage's partition together with other processes, which are started alike: the ranks of a training, by torchrun's or
    /// Slurm's variables.
    #[arg(long, requires = "stage", conflicts_with_all = ["share", "survey"])]
    together: bool,
    /// Leave alone what an earlier configuration made; make only what was never made.
    #[arg(long)]
    only_missing: bool,
    #[command(flatten)]
    budget: Budget,
    #[command(flatten)]
    watch: Watch,
}

impl Worker {
    pub(crate) fn run(&self) -> Result<u8> {
        let cancel = cancelled_by_interrupt()?;
        let time_ends = Arc::new(AtomicBool::new(false));
        let (flag, stop) = (Arc::clone(&time_ends), cancel.clone());
        at_end_of_time(move || {
            flag.store(true, Ordering::Relaxed);
            stop.cancel();
        })?;
        let manifest = self.source.read()?;
        let part = match self.share {
            Some(share) => Part::Share(share),
            None if self.survey => Part::Survey,
            None => Part::Whole,
        };
        let selection =
            Selection { stages: self.stage.clone(), only_missing: self.only_missing, part, ..Selection::default() };
        let mut plan = Plan::select(&manifest, &stages::registry(), &selection)?;
        let world = if self.together { World::from_environment()? } else { None };
        let options = Options { prefer: self.prefer, together: world.is_some(), ..self.budget.options() };
        let leads = match &world {
            Some(world) => world.rank == leader(&plan, world.size)?,
            None => true,
        };
        let code = if leads {
            self.lead(&mut plan, &options, &cancel)?
        } else {
            let rank = world.map_or(0, |world| world.rank);
            assist(&mut plan, &options, &watch::notes_of(rank), &cancel)?;
            if cancel.is_cancelled() { INTERRUPTED } else { OK }
        };
        if code == INTERRUPTED && leads && time_ends.load(Ordering::Relaxed) {
            let is_meant = |name: &String| self.stage.is_empty() || self.stage.contains(name);
            let requeues = manifest.stages.iter().filter(|table| is_meant(&table.name));
            let requeues = requeues.map(|table| table.slurm.requeues()).min().unwrap_or_default();
            let Some(job) = Here::from_environment() else { return Ok(code) };
            job.requeue(requeues, &plan.workdir)?;
            watch::aside(format_args!(
                "The time of job {} ends: it is queued again, and goes on with what is missing.",
                job.id()
            ));
        }
        Ok(code)
    }

    fn lead(&self, plan: &mut Plan, options: &Options, cancel: &Cancel) -> Result<u8> {
        let ended = run(plan, options, &watch::sink(self.watch.style()), cancel);
        if let Err(RunError::Obstructed(obstacles)) = &ended
            && !self.stage.is_empty()
        {
            // No fault of usage: what it reads was not made, as it should have been by now.
            bail!("{}", obstacles.join("\n"));
        }
        Ok(match ended? {
            // Losses are told by `status` and `report`; whoever waits for this worker may go on.
            RunOutcome::UpToDate | RunOutcome::Done | RunOutcome::DoneWithLosses => OK,
            RunOutcome::Interrupted => INTERRUPTED,
            RunOutcome::Failed => FAILED,
        })
    }
}

/// Which of so many processes claims and commits what they make together.
fn leader(plan: &Plan, processes: usize) -> Result<usize> {
    let mut stages = plan.stages.iter().filter(|stage| stage.selected);
    let (Some(stage), None) = (stages.next(), stages.next()) else {
        return Err(Usage("worker --together makes one stage: name it with --stage".to_owned()).into());
    };
    let leader = stage.stage.leader(processes)?;
    leader.ok_or_else(|| {
        Usage(format!("worker --together: one process makes a partition of {} alone", stage.name)).into()
    })
}
