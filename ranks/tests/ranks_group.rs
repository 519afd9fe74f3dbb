//! Sums, broadcasts and barriers give the same bits on all ranks, whatever the sizes.

#![allow(clippy::unwrap_used, reason = "a test may fail by panicking, in its helpers too")]

mod rank_processes;

use std::sync::Arc;
use std::time::Duration;

use rank_processes::{Rank, worlds};
use ranks::{Group, Mesh, MeshOptions, RankError, World};

/// Numbers whose sum depends on the order, different on each rank.
fn numbers(rank: usize, length: usize) -> Vec<f32> {
    let mut state = 0x9e37_79b9_u32.wrapping_mul(rank as u32 + 1);
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        (state as f32 / u32::MAX as f32 - 0.5) * f32::from(1_u16 << (state % 16))
    };
    (0..length).map(|_| next()).collect()
}

fn expected(ranks: &[usize], length: usize) -> Vec<f32> {
    let mut terms = ranks.iter().map(|rank| numbers(*rank, length));
    let first = terms.next().unwrap();
    terms.fold(first, |sum, term| sum.iter().zip(term).map(|(sum, term)| sum + term).collect())
}

fn bits(numbers: &[f32]) -> Vec<u32> {
    numbers.iter().map(|number| number.to_bits()).collect()
}

/// FNV-1a over the bits.
fn digest(numbers: &[f32]) -> u64 {
    let step = |hash: u64, number: &f32| (hash ^ u64::from(number.to_bits())).wrapping_mul(0x0000_0100_0000_01b3);
    numbers.iter().fold(0xcbf2_9ce4_8422_2325, step)
}

/// One thread a rank.
fn together(size: usize, play: impl Fn(Arc<Mesh>) -> Result<(), RankError> + Sync) {
    let worlds = worlds(size);
    let run = |world: &World| play(Arc::new(Mesh::join(world, MeshOptions::default())?));
    std::thread::scope(|scope| {
        let threads: Vec<_> = worlds.iter().map(|world| scope.spawn(|| run(world))).collect();
        for thread in threads {
            thread.join().unwrap().unwrap();
        }
    });
}

const LENGTHS: [usize; 7] = [0, 1, 2, 4, 1000, 1_048_583, 3];

#[test]
fn part() {
    let Some(part) = rank_processes::part() else { return };
    let length: usize = part.parse().unwrap();
    let world = World::from_environment().unwrap().unwrap();
    let mesh = Arc::new(Mesh::join(&world, MeshOptions::default()).unwrap());
    let group = Group::of_all(mesh, 0).unwrap();
    let mut data = numbers(world.rank, length);
    group.all_reduce(&mut data).unwrap();
    eprintln!("sum {:016x}", digest(&data));
}

#[test]
fn processes_sum_in_the_order_of_ranks() {
    for (size, length) in [(2, 8 << 20), (3, (8 << 20) + 1), (5, 4 << 20)] {
        let all: Vec<usize> = (0..size).collect();
        let ranks = Rank::start_all(&length.to_string(), &worlds(size));
        let sum = format!("sum {:016x}", digest(&expected(&all, length)));
        for mut rank in ranks {
            rank.line(&sum, Duration::from_secs(30));
            assert!(rank.wait(Duration::from_secs(5)).success());
        }
    }
}

#[test]
fn all_lengths_are_summed() {
    for size in [1, 2, 3, 5] {
        let all: Vec<usize> = (0..size).collect();
        together(size, |mesh| {
            let rank = mesh.rank();
            let group = Group::of_all(mesh, 0)?;
            for length in LENGTHS {
                let mut data = numbers(rank, length);
                group.all_reduce(&mut data)?;
                assert_eq!(bits(&data), bits(&expected(&all, length)), "{length} numbers of {size} ranks");
            }
            Ok(())
        });
    }
}

#[test]
fn signs_of_zero_are_kept() {
    together(2, |mesh| {
        let mut data = [-0.0];
        Group::of_all(mesh, 0)?.all_reduce(&mut data)?;
        assert_eq!(data[0].to_bits(), (-0.0_f32).to_bits());
        Ok(())
    });
}

#[test]
fn two_groups_at_once_and_one_of_some() {
    together(4, |mesh| {
        let rank = mesh.rank();
        let all = Group::of_all(Arc::clone(&mesh), 0)?;
        let other = Group::of_all(Arc::clone(&mesh), 8)?;
        std::thread::scope(|scope| {
            let run = |group: Group, length: usize| {
                for _ in 0..20 {
                    let mut data = numbers(rank, length);
                    group.all_reduce(&mut data).unwrap();
                    assert_eq!(bits(&data), bits(&expected(&[0, 1, 2, 3], length)));
                }
            };
            scope.spawn(move || run(all, 100_000));
            scope.spawn(move || run(other, 70_001));
        });
        if rank == 0 {
            let error = Group::new(Arc::clone(&mesh), vec![3, 1], 16).unwrap_err();
            assert_eq!(error.to_string(), "there is no rank 0 among ranks 1 and 3");
            assert!(matches!(Group::new(mesh, vec![0, 4], 16), Err(RankError::NoSuchRank { rank: 4, .. })));
            return Ok(());
        }
        let some = Group::new(mesh, vec![3, 1, 2], 16)?;
        let mut data = numbers(rank, 1000);
        some.all_reduce(&mut data)?;
        assert_eq!(bits(&data), bits(&expected(&[1, 2, 3], 1000)));
        some.barrier()
    });
}

#[test]
fn bytes_are_shared() {
    together(3, |mesh| {
        let rank = mesh.rank();
        let group = Group::of_all(Arc::clone(&mesh), 0)?;
        for root in 0..3 {
            let mut bytes = vec![rank as u8; rank * 1000];
            group.broadcast(root, &mut bytes)?;
            assert_eq!(bytes, vec![root as u8; root * 1000]);
            let mut data = numbers(rank, 9_000_001);
            group.broadcast_slice(root, &mut data)?;
            assert!(data == numbers(root, 9_000_001));
            group.broadcast_slice::<f32>(root, &mut [])?;
        }
        let all = group.all_gather_bytes(&vec![7; rank])?;
        assert_eq!(all, [vec![], vec![7], vec![7, 7]]);
        group.barrier()?;
        mesh.send_parts((rank + 1) % 3, 99, &[b"a", b"", b"bc"])?;
        assert_eq!(mesh.receive((rank + 2) % 3, 99)?, b"abc");
        assert_eq!(mesh.try_receive((rank + 2) % 3, 99)?, None);
        mesh.send(rank, 1, b"to itself")?;
        assert_eq!(mesh.try_receive(rank, 1)?.as_deref(), Some(&b"to itself"[..]));
        assert!(matches!(mesh.send(3, 1, b""), Err(RankError::NoSuchRank { rank: 3, .. })));
        assert!(matches!(mesh.receive(3, 1), Err(RankError::NoSuchRank { rank: 3, .. })));
        assert!(matches!(mesh.send(0, u32::MAX, b""), Err(RankError::Channel { .. })));
        group.barrier()
    });
}

#[test]
fn ranks_that_do_not_agree_get_an_error() {
    together(2, |mesh| {
        let mut data = vec![1.0; 10 + mesh.rank()];
        let error = Group::of_all(Arc::clone(&mesh), 0)?.all_reduce(&mut data).unwrap_err();
        assert!(matches!(error, RankError::Mismatch { .. } | RankError::Left { .. }), "{error}");
        Ok(())
    });
}
