//! Ranks on one machine, from the first to the last.

#![allow(clippy::unwrap_used, reason = "a test may fail by panicking, in its helpers too")]

mod rank_processes;

use std::ffi::OsString;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::{Duration, Instant};

use rank_processes::Rank;
use ranks::{ChildExit, FirstFailure, Group, LaunchEnd, LaunchError, LaunchOptions, Mesh, MeshOptions, World, launch};

/// A rank that only saw another one fail.
const BYSTANDER: i32 = 75;

/// The parts that ranks play are test functions of this binary, which do nothing unless they are ranks.
fn rank() -> Option<usize> {
    std::env::var("RANK").ok().map(|rank| rank.parse().unwrap())
}

fn join() -> Arc<Mesh> {
    let world = World::from_environment().unwrap().unwrap();
    assert_eq!(world.secret.as_ref().map(String::len), Some(32));
    Arc::new(Mesh::join(&world, MeshOptions::default()).unwrap())
}

#[test]
fn part_sum() {
    let Some(rank) = rank() else { return };
    let mut data = [rank as f32];
    Group::of_all(join(), 0).unwrap().all_reduce(&mut data).unwrap();
    assert_eq!(data, [3.0]);
}

#[test]
fn part_fail() {
    let Some(rank) = rank() else { return };
    let mesh = join();
    if rank == 1 {
        mesh.fail("for a reason");
        std::thread::sleep(Duration::from_millis(500));
        std::process::exit(7);
    }
    eprintln!("{}", mesh.receive(1, 0).unwrap_err());
    std::process::exit(BYSTANDER);
}

#[test]
fn part_abort() {
    let Some(rank) = rank() else { return };
    let mesh = join();
    if rank == 2 {
        std::process::abort();
    }
    mesh.receive(2, 0).unwrap_err();
    std::process::exit(1);
}

#[test]
fn part_deaf() {
    if rank().is_some_and(|rank| rank == 0) {
        std::process::exit(9);
    } else if rank().is_some() {
        std::thread::sleep(Duration::from_mins(1));
    }
}

#[test]
fn part_sleep() {
    if rank().is_some() {
        eprintln!("{} sleeps", std::process::id());
        std::thread::sleep(Duration::from_mins(1));
    }
}

/// Plays the launcher itself, so that it can be killed.
#[test]
fn part() {
    if rank_processes::part().is_some() {
        launch_part("part_sleep", Arc::default()).unwrap();
    }
}

fn launch_part(part: &str, signal: Arc<AtomicI32>) -> Result<LaunchEnd, LaunchError> {
    let own = std::env::current_exe().unwrap();
    let arguments = [part, "--exact", "--nocapture"].map(OsString::from);
    let options = LaunchOptions { processes: 3, bystander_code: Some(BYSTANDER), signal, ..LaunchOptions::default() };
    launch(own.as_os_str(), &arguments, &options)
}

fn end(part: &str) -> (Option<FirstFailure>, Duration) {
    let start = Instant::now();
    let end = launch_part(part, Arc::default()).unwrap();
    assert_eq!(end.signal, None);
    (end.failure, start.elapsed())
}

#[test]
fn all_end_well() {
    assert_eq!(end("part_sum").0, None);
}

#[test]
fn the_first_to_fail_is_named() {
    let (failure, time) = end("part_fail");
    assert_eq!(failure, Some(FirstFailure { rank: 1, exit: ChildExit::Code(7) }));
    assert_eq!(failure.unwrap().to_string(), "rank 1 ended with exit code 7");
    assert!(time < Duration::from_secs(5), "{time:?}");
    let (failure, time) = end("part_abort");
    assert_eq!(failure, Some(FirstFailure { rank: 2, exit: ChildExit::Signal(6) }));
    assert!(time < Duration::from_secs(5), "{time:?}");
}

#[test]
fn who_does_not_hear_of_it_is_made_to_end() {
    let (failure, time) = end("part_deaf");
    assert_eq!(failure, Some(FirstFailure { rank: 0, exit: ChildExit::Code(9) }));
    assert!(time > Duration::from_secs(5) && time < Duration::from_secs(8), "{time:?}");
}

#[test]
fn signals_are_sent_on() {
    let signal = Arc::new(AtomicI32::new(0));
    let start = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(500));
            signal.store(15, Ordering::Release);
        });
        let end = launch_part("part_sleep", Arc::clone(&signal)).unwrap();
        assert_eq!(end.signal, Some(15));
        assert!(matches!(end.failure, Some(FirstFailure { exit: ChildExit::Signal(15), .. })), "{end:?}");
        assert_eq!(end.exit_code(), 143);
    });
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
}

/// Rank 0 says by its exit code how many signals came; it needs longer to end than failed ranks are given to speak.
#[test]
fn who_still_writes_after_a_signal_is_not_sent_another() {
    let script = "if [ $RANK = 1 ]; then trap 'exit 5' TERM; while :; do sleep 0.1; done; fi
        n=0; trap 'n=$((n+1))' TERM; while [ $n = 0 ]; do sleep 0.1; done
        i=0; while [ $i -lt 60 ]; do sleep 0.1; i=$((i+1)); done; exit $n";
    let signal = Arc::new(AtomicI32::new(0));
    let options = LaunchOptions {
        processes: 2,
        bystander_code: Some(5),
        signal: Arc::clone(&signal),
        ..LaunchOptions::default()
    };
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(500));
            signal.store(15, Ordering::Release);
        });
        let end = launch("sh".as_ref(), &["-c", script].map(OsString::from), &options).unwrap();
        assert_eq!(end.failure, Some(FirstFailure { rank: 0, exit: ChildExit::Code(1) }));
    });
}

#[test]
fn no_rank_outlives_a_launcher_that_was_killed() {
    let world = World {
        rank: 0,
        size: 1,
        local_rank: 0,
        local_size: 1,
        master_address: "127.0.0.1".to_owned(),
        master_port: 1,
        secret: None,
    };
    let mut launcher = Rank::start("launcher", &world, &["env", "--unset=RANK"]);
    let ranks: Vec<String> = (0..3)
        .map(|_| {
            let (_, line) = launcher.line("sleeps", Duration::from_secs(10));
            let words: Vec<&str> = line.split(' ').collect();
            words[words.len() - 2].to_owned()
        })
        .collect();
    let lives = |id: &String| {
        Command::new("kill").args(["-0", id]).stderr(Stdio::null()).status().unwrap().success() && !is_zombie(id)
    };
    assert!(ranks.iter().all(lives));
    launcher.signal("KILL");
    launcher.wait(Duration::from_secs(5));
    let deadline = Instant::now() + Duration::from_secs(5);
    while ranks.iter().any(lives) {
        assert!(Instant::now() < deadline, "{ranks:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Without anybody to wait for it, where the tests' own process 1 does not.
fn is_zombie(id: &str) -> bool {
    std::fs::read_to_string(format!("/proc/{id}/stat")).is_ok_and(|stat| stat.contains(") Z "))
}

#[test]
fn what_cannot_be_launched_is_named() {
    let launch = |options| launch("/nowhere/at-all".as_ref(), &[], &options).unwrap_err().to_string();
    assert_eq!(launch(LaunchOptions::default()), "cannot start rank 0: \"/nowhere/at-all\"");
    let options = LaunchOptions { processes: 0, ..LaunchOptions::default() };
    assert_eq!(launch(options), "processes = 0 is not possible: from 1 to 1024");
    let options = LaunchOptions { nodes: 2, ..LaunchOptions::default() };
    assert_eq!(launch(options), "nodes = 2 is not possible: with several, a master_port has to be chosen");
}
