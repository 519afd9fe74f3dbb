//! One rank of several that train together.

use std::sync::Arc;
use std::time::Duration;

use models::{ModelError, device};
use ranks::{Group, Mesh, MeshOptions, RankError, Role, Roles, World};
use tch::Device;

use crate::TrainError;
use crate::collective::transfer::{Channels, Link, SentFeed, Served, serve};
use crate::collective::{Collective, NcclCollective, TcpCollective};
use crate::config::TrainOperations;
use crate::encode::Encoder;
use crate::feed::{OwnFeed, held_out, source};
use crate::loader::Share;
use crate::order::Part;
use crate::train::{Finished, Job, begin, run};

/// First channel of the ranks that hold the model: of what they wait for, and of sums in the making.
const WAITED_FOR: u32 = 1;
const SUMS: u32 = 100;
const BATCHES: Channels = Channels { ask: 200, batch: 201 };

/// How long the verdict about a rank that was cut off may take.
const VERDICT: Duration = Duration::from_secs(10);

/// Trains as one rank of `world`. What came of it is told by the first rank that holds the model; the others have nothing to tell.
///
/// An error on one rank is an error on all of them, which names the rank.
pub fn train_together(job: &Job, world: &World) -> Result<Option<Finished>, TrainError> {
    job.config.validate()?;
    let roles = roles(job.operations, world.size)?;
    let mesh = Arc::new(Mesh::join(world, MeshOptions::default())?);
    let work = || {
        attempt(|| match roles.role_of(world.rank) {
            Role::Loader { models } => load_for(job, world, &mesh, &roles, models).map(|()| None),
            Role::Model { loader } => hold_model(job, world, &mesh, &roles, Some(loader)),
            Role::Both => hold_model(job, world, &mesh, &roles, None),
        })
    };
    let done = work();
    // Sums by NCCL that were aborted leave all kinds of errors, and numbers that are none: they are put down to the rank that was lost.
    let on_gpu = device_of(job, world).is_ok_and(Device::is_cuda);
    match &done {
        // Another one was lost, and that is known to all.
        Err(TrainError::Rank(RankError::PeerLost { .. })) => {}
        Err(_) if on_gpu && mesh.wait_for_failure(VERDICT).is_some() => {}
        Err(error) => drop(mesh.fail(&in_a_line(error))),
        Ok(_) => mesh.leave(),
    }
    match (done, mesh.failure()) {
        (Err(_), Some(RankError::PeerLost { rank, reason })) if on_gpu && rank != world.rank => {
            Err(RankError::PeerLost { rank, reason }.into())
        }
        (done, _) => done,
    }
}

/// Libtorch's panics are errors like others: the other ranks are to hear of them.
fn attempt<T>(work: impl FnOnce() -> Result<T, TrainError>) -> Result<T, TrainError> {
    ModelError::attempt("training", || Ok(work()))?
}

fn in_a_line(error: &TrainError) -> String {
    let mut causes = vec![error.to_string()];
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        causes.push(cause.to_string());
        source = cause.source();
    }
    // A transparent error repeats its source.
    causes.dedup();
    causes.join(": ")
}

/// Of `size` ranks, the one that tells what came of a training: the first that holds the model.
pub fn first_model(operations: &TrainOperations, size: usize) -> Result<usize, TrainError> {
    Ok(roles(operations, size)?.model_ranks().first().copied().unwrap_or(0))
}

fn roles(operations: &TrainOperations, size: usize) -> Result<Roles, TrainError> {
    Ok(match (&operations.loaders, operations.models_per_loader) {
        (Some(_), Some(_)) => {
            return Err(TrainError::Configuration {
                what: "models_per_loader",
                value: "set".to_owned(),
                expected: "either loaders or models_per_loader, not both".to_owned(),
            });
        }
        (Some(loaders), None) => Roles::from_loaders(loaders.clone(), size)?,
        (None, Some(models)) => Roles::from_models_per_loader(models, size)?,
        (None, None) => Roles::all_in_one(size),
    })
}

fn device_of(job: &Job, world: &World) -> Result<Device, TrainError> {
    let named = device::named(job.operations.device.as_deref(), world.local_rank);
    named.map_err(|message| TrainError::Device { message })
}

/// The part of each batch that belongs to the rank at `position` among those that hold the model.
fn share(roles: &Roles, position: usize) -> Share {
    Share { rank: position as u64, ranks: roles.model_ranks().len() as u64 }
}

fn load_for(job: &Job, world: &World, mesh: &Mesh, roles: &Roles, models: &[usize]) -> Result<(), TrainError> {
    let device = device_of(job, world)?;
    let encoder = Encoder::new(job.config, device)?;
    let source = source(job, models.len())?;
    let all = roles.model_ranks();
    // Where the model ranks begin is known to the first of them, which tells it with its first words to each loader.
    let mut served = Vec::with_capacity(models.len());
    for &model in models {
        let (link, start) = Link::with_model(mesh, model, BATCHES, device)?;
        let position = all.iter().position(|rank| *rank == model).unwrap_or(0);
        let share = share(roles, position);
        let is_held_out = job.config.validation_images > 0;
        let held_out = is_held_out.then(|| held_out(&source, share, &encoder)).transpose()?;
        let loader = source.load(Part::Training, share, start..job.config.steps)?;
        served.push(Served::new(link, loader, held_out)?);
    }
    serve(&encoder, served)?;
    Ok(())
}

fn hold_model(
    job: &Job,
    world: &World,
    mesh: &Arc<Mesh>,
    roles: &Roles,
    loader: Option<usize>,
) -> Result<Option<Finished>, TrainError> {
    let device = device_of(job, world)?;
    let all = roles.model_ranks();
    let group = Group::new(Arc::clone(mesh), all.clone(), WAITED_FOR)?;
    let position = group.position();
    let mut ranks: Box<dyn Collective> = match device {
        Device::Cuda(ordinal) => Box::new(NcclCollective::new(group, ordinal)?),
        _ => Box::new(TcpCollective::new(group, Group::new(Arc::clone(mesh), all, SUMS)?)?),
    };
    let begun = begin(job, device, ranks.as_mut())?;
    let Some(loader) = loader else {
        let mut feed = OwnFeed::open(job, begun.updates, share(roles, position), device)?;
        return run(job, begun, &mut feed, ranks.as_mut());
    };
    let mut feed = SentFeed::new(Link::with_loader(mesh, loader, BATCHES, device, begun.updates)?);
    let finished = run(job, begun, &mut feed, ranks.as_mut())?;
    feed.end()?;
    Ok(finished)
}
