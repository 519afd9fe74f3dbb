//! One rank of several that train together.

use std::sync::Arc;
use std::time::Duration;

use models::device;
use models::mmdit::MmditConfig;
use ranks::{Group, Mesh, MeshOptions, RankError, Role, Roles, World};
use serde_json::{Map, Value, json};
use tch::Device;

use crate::TrainError;
use crate::collective::transfer::{Channels, Link, SentFeed, Served, serve};
use crate::collective::{Collective, NcclCollective, TcpCollective};
use crate::config::{Encode, TrainOperations};
use crate::encode::Encoder;
use crate::feed::{OwnFeed, held_out, source};
use crate::loader::Share;
use crate::order::Part;
use crate::train::{Finished, Job, attempt, begin, index_of, run};

/// First channel of the ranks that hold the model: of what they wait for, and of sums in the making.
const WAITED_FOR: u32 = 1;
const SUMS: u32 = 100;
const BATCHES: Channels = Channels { ask: 200, batch: 201 };
/// And of all ranks, which compare their settings.
const SETTINGS: u32 = 300;

/// How long the verdict about a rank that was cut off may take.
const VERDICT: Duration = Duration::from_secs(10);

/// Trains as one rank of `world`. What came of it is told by the first rank that holds the model; the others have nothing to tell.
///
/// An error on one rank is an error on all of them, which names the rank.
pub fn train_together(job: &Job, world: &World) -> Result<Option<Finished>, TrainError> {
    job.config.validate()?;
    let roles = roles(job.operations, world.size)?;
    let mesh = Arc::new(Mesh::join(world, MeshOptions::default())?);
    let agreed = match agree(job, roles.role_of(world.rank), &mesh) {
        Err(error @ TrainError::OtherSettings { .. }) => {
            // All ranks come to the same.
            mesh.leave();
            return Err(error);
        }
        agreed => agreed,
    };
    // The other ranks are to hear of what libtorch refuses, too.
    let work = || {
        attempt(|| match roles.role_of(world.rank) {
            Role::Loader { models } => load_for(job, world, &mesh, &roles, models).map(|()| None),
            Role::Model { loader } => hold_model(job, world, &mesh, &roles, Some(loader)),
            Role::Both => hold_model(job, world, &mesh, &roles, None),
        })
    };
    let done = agreed.and_then(|()| work());
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

/// Refuses ranks that were started to do different things: what they sum would be neither's.
fn agree(job: &Job, role: Role, mesh: &Arc<Mesh>) -> Result<(), TrainError> {
    let own = serde_json::to_vec(&settings(job, role)?).unwrap_or_default();
    let mut known: Map<String, Value> = Map::new();
    for (rank, told) in Group::of_all(Arc::clone(mesh), SETTINGS)?.all_gather_bytes(&own)?.into_iter().enumerate() {
        // Its own too as it comes back: numbers may have lost their last bits on the way.
        let told: Map<String, Value> = serde_json::from_slice(&told).map_err(|error| TrainError::OtherSettings {
            rank,
            difference: format!("they cannot be read ({error})"),
        })?;
        let differs = |(key, value): (&String, &Value)| {
            known.get(key).filter(|before| *before != value).map(|before| format!("{key} {before} → {value}"))
        };
        let differences: Vec<String> = told.iter().filter_map(differs).collect();
        if !differences.is_empty() {
            return Err(TrainError::OtherSettings { rank, difference: differences.join(", ") });
        }
        known.extend(told);
    }
    Ok(())
}

/// What ranks must agree on, as far as this one knows it, by the names that people know it by. Folders may lie elsewhere on each machine,
/// and only ranks that load need to have the index, and what encodes pictures and captions.
fn settings(job: &Job, role: Role) -> Result<Map<String, Value>, TrainError> {
    let Job { config, operations, .. } = *job;
    let MmditConfig { channels, text_streams, text_width, pooled_width, .. } = config.model()?;
    let [Value::Object(mut settings), Value::Object(operations)] =
        [serde_json::to_value(config), serde_json::to_value(operations)].map(Result::unwrap_or_default)
    else {
        return Ok(Map::new());
    };
    for key in ["latents", "text", "start"] {
        settings.remove(key);
    }
    // When all of them sum or stop together, and who loads for whom.
    let of_all = ["checkpoint_every", "log_every", "validate_every", "loaders", "models_per_loader"];
    settings.extend(operations.into_iter().filter(|(key, _)| of_all.contains(&key.as_str())));
    let shapes = json!([channels, config.pixel_multiple()?, text_streams, text_width, pooled_width]);
    settings.insert("the shapes of latents and text".to_owned(), shapes);
    settings.insert("version".to_owned(), env!("CARGO_PKG_VERSION").into());
    if let Role::Model { .. } = role {
        return Ok(settings);
    }
    let index = index_of(job)?.map(|digest| ("the index's digest".to_owned(), Value::from(digest.to_string())));
    settings.extend(index);
    if config.encode == Encode::Online {
        settings.insert("latents".to_owned(), config.latents.identity()?);
        settings.insert("text".to_owned(), config.text.identity()?);
    }
    Ok(settings)
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

/// How many ranks of this machine load. Its ranks have numbers in a row.
fn loaders_here(world: &World, roles: &Roles) -> usize {
    let first = world.rank.saturating_sub(world.local_rank);
    let here = first..first + world.local_size;
    roles.loader_ranks().into_iter().filter(|rank| here.contains(rank)).count()
}

fn load_for(job: &Job, world: &World, mesh: &Mesh, roles: &Roles, models: &[usize]) -> Result<(), TrainError> {
    let device = device_of(job, world)?;
    let encoder = Encoder::new(job.config, device)?;
    let source = source(job, models.len(), loaders_here(world, roles))?;
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
        let (share, processes) = (share(roles, position), loaders_here(world, roles));
        let mut feed = OwnFeed::open(job, begun.updates, share, device, processes)?;
        return run(job, begun, &mut feed, ranks.as_mut());
    };
    let mut feed = SentFeed::new(Link::with_loader(mesh, loader, BATCHES, device, begun.updates)?);
    let finished = run(job, begun, &mut feed, ranks.as_mut())?;
    feed.end()?;
    Ok(finished)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loaders_of_one_machine_are_counted() {
        let world = |rank, local_rank| World {
            rank,
            size: 16,
            local_rank,
            local_size: 8,
            master_address: String::new(),
            master_port: 1,
            secret: None,
        };
        let (all, some) = (Roles::all_in_one(16), Roles::from_models_per_loader(3, 16).unwrap());
        assert_eq!([loaders_here(&world(0, 0), &all), loaders_here(&world(11, 3), &all)], [8, 8]);
        assert_eq!([loaders_here(&world(4, 4), &some), loaders_here(&world(8, 0), &some)], [2, 2]);
    }
}
