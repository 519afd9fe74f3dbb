//! How fast ranks on this machine sum 64 MB: `cargo run --release --example throughput [ranks]`.

use std::sync::Arc;
use std::time::Instant;

use ranks::{Group, LaunchOptions, Mesh, MeshOptions, World, launch};

const BYTES: usize = 64_000_000;
const ROUNDS: u32 = 20;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let Some(world) = World::from_environment()? else {
        let processes = std::env::args().nth(1).map_or(Ok(4), |ranks| ranks.parse())?;
        let options = LaunchOptions { processes, ..LaunchOptions::default() };
        launch(std::env::current_exe()?.as_os_str(), &[], &options)?;
        return Ok(());
    };
    let group = Group::of_all(Arc::new(Mesh::join(&world, MeshOptions::default())?), 0)?;
    let mut data = vec![1.0; BYTES / 4];
    group.all_reduce(&mut data)?;
    let mut best = f64::MAX;
    let start = Instant::now();
    for _ in 0..ROUNDS {
        let one = Instant::now();
        group.all_reduce(&mut data)?;
        best = best.min(one.elapsed().as_secs_f64());
        data.fill(1.0);
    }
    let mean = start.elapsed().as_secs_f64() / f64::from(ROUNDS);
    if world.rank == 0 {
        let gigabytes = BYTES as f64 / 1e9;
        eprintln!(
            "{} ranks, 64 MB: mean {:.1} ms = {:.2} GB/s of numbers, best {:.1} ms = {:.2} GB/s",
            world.size,
            mean * 1e3,
            gigabytes / mean,
            best * 1e3,
            gigabytes / best
        );
    }
    Ok(group.barrier()?)
}
