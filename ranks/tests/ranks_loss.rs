//! Whatever happens to one rank, all others end soon, with one and the same error that names it.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test may fail by panicking, in its helpers too")]

mod rank_processes;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rank_processes::{Rank, SOON, said, worlds};
use ranks::{Group, Mesh, MeshOptions, RankError, World};

/// What ranks do until one of them is lost.
fn play(part: &str, mesh: &Arc<Mesh>) -> Result<(), RankError> {
    let rank = mesh.rank();
    let group = Group::of_all(Arc::clone(mesh), 0)?;
    let mut data = vec![1.0; 1 << 20];
    group.barrier()?;
    eprintln!("joined");
    match part {
        "wait" => mesh.receive((rank + 1) % mesh.size(), 77).map(drop),
        "leave" => {
            if rank == 1 {
                mesh.leave();
                eprintln!("left");
                return Ok(());
            }
            std::thread::sleep(Duration::from_secs(2));
            let rest = Group::new(Arc::clone(mesh), vec![0, 2, 3], 8)?;
            rest.all_reduce(&mut data)?;
            assert!(matches!(mesh.receive(1, 5), Err(RankError::Left { rank: 1 })));
            assert!(matches!(mesh.send(1, 5, b""), Err(RankError::Left { rank: 1 })));
            rest.barrier()
        }
        _ => loop {
            group.all_reduce(&mut data)?;
            data.fill(1.0);
            if rank == 2 && part == "fail" {
                return Err(mesh.fail("the loss is\nnot a number"));
            }
            if rank == 2 && part == "vanish" {
                std::process::exit(0);
            }
            assert!(rank != 2 || part != "panic", "as asked for");
        },
    }
}

#[test]
fn part() {
    let Some(part) = rank_processes::part() else { return };
    let world = World::from_environment().unwrap().unwrap();
    let mesh = Arc::new(Mesh::join(&world, MeshOptions::default()).unwrap());
    let called = Arc::new(AtomicBool::new(false));
    let calls = Arc::clone(&called);
    mesh.on_failure(Box::new(move |error| {
        eprintln!("called: {error}");
        calls.store(true, Ordering::Release);
    }));
    match play(&part, &mesh) {
        Ok(()) => eprintln!("done, {:?}", mesh.failure()),
        Err(error) => {
            eprintln!("error: {error}");
            assert_eq!(mesh.failure().map(|failure| failure.to_string()), Some(error.to_string()));
            let again = mesh.send((world.rank + 1) % world.size, 1, b"").unwrap_err();
            assert_eq!(again.to_string(), error.to_string());
            // Without a goodbye, and at once, as a process may end.
            std::process::exit(3);
        }
    }
    let start = Instant::now();
    drop(mesh);
    assert!(start.elapsed() < Duration::from_millis(1300), "{:?}", start.elapsed());
    assert!(!called.load(Ordering::Acquire));
    eprintln!("ended");
}

/// How long after `harm` to rank 2 the others name it.
fn lose(part: &str, harm: impl Fn(&Rank), reason: &str, lost: usize, limit: Duration) {
    let mut ranks = Rank::start_all(part, &worlds(4));
    said(&ranks, "joined");
    std::thread::sleep(Duration::from_millis(300));
    let start = Instant::now();
    harm(&ranks[lost]);
    let words = format!("error: rank {lost} is lost: ");
    let mut lines = Vec::new();
    let mut longest = Duration::ZERO;
    for rank in ranks.iter_mut().filter(|rank| rank.world.rank != lost) {
        let (at, line) = rank.line(&words, SOON);
        longest = longest.max(at.saturating_duration_since(start));
        lines.push(line);
        assert_eq!(rank.wait(SOON).code(), Some(3));
    }
    println!("{part}, rank {lost}: {longest:.2?}: {}", lines[0]);
    assert!(lines.iter().all(|line| line.contains(reason)), "{lines:?}");
    assert!(longest < limit, "{longest:?}");
}

#[test]
fn one_that_is_killed() {
    let kill = |rank: &Rank| rank.signal("KILL");
    lose("work", kill, "its connection", 2, Duration::from_secs(2));
    lose("wait", kill, "its connection", 0, Duration::from_secs(2));
}

#[test]
fn one_that_is_stopped() {
    let stop = |rank: &Rank| rank.signal("STOP");
    std::thread::scope(|scope| {
        scope.spawn(|| lose("work", stop, "nothing came from it for 6.0 s", 2, Duration::from_secs(10)));
        scope.spawn(|| lose("wait", stop, "nothing came from it for 6.0 s", 0, Duration::from_secs(10)));
    });
}

#[test]
fn one_that_was_stopped_learns_of_it() {
    let ranks = Rank::start_all("wait", &worlds(3));
    said(&ranks, "joined");
    ranks[1].signal("STOP");
    ranks[0].line("error: rank 1 is lost", SOON);
    ranks[1].signal("CONT");
    ranks[1].line("error: rank 1 is lost: nothing came from it", SOON);
}

#[test]
fn a_short_pause_is_no_loss() {
    let ranks = Rank::start_all("leave", &worlds(4));
    said(&ranks, "joined");
    ranks[3].signal("STOP");
    std::thread::sleep(Duration::from_secs(4));
    ranks[3].signal("CONT");
    said(&ranks, "ended");
}

#[test]
fn one_that_fails_by_itself_tells_why() {
    lose("fail", |_| (), "it failed: the loss is not a number", 2, SOON);
    lose("panic", |_| (), "it failed: it panicked", 2, SOON);
    lose("vanish", |_| (), "its connection", 2, SOON);
}

#[test]
fn when_two_fail_at_once_all_name_the_same_one() {
    for round in 0..10 {
        let worlds = worlds(4);
        let errors = std::thread::scope(|scope| {
            let run = |world: &World| {
                let mesh = Arc::new(Mesh::join(world, MeshOptions::default()).unwrap());
                let together = Group::of_all(Arc::clone(&mesh), 0).unwrap().barrier();
                let failing = if round % 2 == 0 { 1..3 } else { 0..4 };
                let error = match together {
                    // Others have failed already.
                    Err(error) => error,
                    Ok(()) if failing.contains(&world.rank) => mesh.fail("why"),
                    Ok(()) => mesh.receive(3, 9).unwrap_err(),
                };
                assert_eq!(mesh.failure().map(|failure| failure.to_string()), Some(error.to_string()));
                error.to_string()
            };
            let threads: Vec<_> = worlds.iter().map(|world| scope.spawn(move || run(world))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
        });
        assert!(errors.iter().all(|error| *error == errors[0]), "{errors:?}");
    }
}

#[test]
fn one_may_leave_before_the_others() {
    let mut ranks = Rank::start_all("leave", &worlds(4));
    for rank in &mut ranks {
        rank.line("done, None", SOON);
        rank.line("ended", SOON);
        assert!(rank.wait(SOON).success());
    }
}

#[test]
fn to_leave_at_once_is_no_loss() {
    for round in 0..20 {
        let worlds = worlds(4);
        std::thread::scope(|scope| {
            for world in &worlds {
                scope.spawn(move || {
                    let mesh = Mesh::join(world, MeshOptions::default()).unwrap();
                    std::thread::sleep(Duration::from_millis(round * world.rank as u64));
                    mesh.leave();
                    assert!(mesh.failure().is_none(), "{:?}", mesh.failure());
                    let start = Instant::now();
                    drop(mesh);
                    assert!(start.elapsed() < Duration::from_millis(500));
                });
            }
        });
    }
}

#[test]
fn work_that_waits_for_a_lost_rank_beside_the_mesh_is_left_behind() {
    let worlds = worlds(2);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mesh = Mesh::join(&worlds[0], MeshOptions::default()).unwrap();
            assert_eq!(mesh.unless_lost(|| 7).unwrap(), 7);
            let panics = || mesh.unless_lost::<()>(|| panic!("as asked for"));
            let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(panics)).unwrap_err();
            assert_eq!(panic.downcast_ref(), Some(&"as asked for"));
            mesh.send(1, 3, b"now").unwrap();
            // As a library that nobody can tell of the loss: what would wake it never comes.
            let (_never, waits) = std::sync::mpsc::channel::<()>();
            let start = Instant::now();
            let error = mesh.unless_lost(move || waits.recv()).unwrap_err().to_string();
            assert_eq!(error, "rank 1 is lost: it failed: why");
            assert!(start.elapsed() < SOON, "{:?}", start.elapsed());
            let error = mesh.unless_lost(std::thread::park).unwrap_err().to_string();
            assert_eq!(error, "rank 1 is lost: it failed: why");
        });
        scope.spawn(|| {
            let mesh = Mesh::join(&worlds[1], MeshOptions::default()).unwrap();
            mesh.receive(0, 3).unwrap();
            mesh.fail("why");
        });
    });
}

#[test]
fn what_was_sent_before_leaving_arrives() {
    let worlds = worlds(2);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mesh = Mesh::join(&worlds[0], MeshOptions::default()).unwrap();
            for n in 0..20 {
                mesh.send(1, 3, &vec![n; 3_000_000]).unwrap();
            }
        });
        scope.spawn(|| {
            let mesh = Mesh::join(&worlds[1], MeshOptions::default()).unwrap();
            std::thread::sleep(Duration::from_millis(1500));
            for n in 0..20 {
                assert!(mesh.receive(0, 3).unwrap() == vec![n; 3_000_000]);
            }
            assert!(matches!(mesh.receive(0, 3), Err(RankError::Left { rank: 0 })));
            assert!(mesh.failure().is_none());
        });
    });
}

#[test]
fn a_rank_alone_can_fail_too() {
    let mesh = Mesh::join(&worlds(1)[0], MeshOptions::default()).unwrap();
    assert_eq!(mesh.fail("why").to_string(), "rank 0 is lost: it failed: why");
    assert_eq!(mesh.fail("again").to_string(), "rank 0 is lost: it failed: why");
    let (sender, called) = std::sync::mpsc::channel();
    mesh.on_failure(Box::new(move |error| sender.send(error.to_string()).unwrap()));
    assert_eq!(called.try_recv().as_deref(), Ok("rank 0 is lost: it failed: why"));
}
