//! Ranks as processes of their own: the test binary starts itself, to play a part.
#![allow(dead_code, reason = "each test binary uses some of it")]
#![allow(clippy::unwrap_used, reason = "a test may fail by panicking, in its helpers too")]

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use ranks::World;

const PART: &str = "RANKS_TEST_PART";

/// The part that this process is to play, if it is not the test itself.
pub(crate) fn part() -> Option<String> {
    std::env::var(PART).ok()
}

pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// The worlds of ranks on this machine.
pub(crate) fn worlds(size: usize) -> Vec<World> {
    let port = free_port();
    let world = |rank| World {
        rank,
        size,
        local_rank: rank,
        local_size: size,
        master_address: "127.0.0.1".to_owned(),
        master_port: port,
        secret: Some("of this test".to_owned()),
    };
    (0..size).map(world).collect()
}

/// As long as anything may take that is not measured.
pub(crate) const SOON: Duration = Duration::from_secs(30);

/// Waits until all of them said so.
pub(crate) fn said(ranks: &[Rank], words: &str) {
    for rank in ranks {
        rank.line(words, SOON);
    }
}

/// A rank and what it says on standard error.
pub(crate) struct Rank {
    pub(crate) world: World,
    pub(crate) child: Child,
    lines: Receiver<(Instant, String)>,
}

impl Rank {
    /// Plays `part`, which is in the test function `part` of this binary. `before` is what goes before its command.
    pub(crate) fn start(part: &str, world: &World, before: &[&str]) -> Self {
        let own = std::env::current_exe().unwrap();
        let own = own.to_str().unwrap();
        let command = [before, &[own, "part", "--exact", "--nocapture"]].concat();
        let mut child = Command::new(command[0])
            .args(&command[1..])
            .env(PART, part)
            .env("RANK", world.rank.to_string())
            .env("WORLD_SIZE", world.size.to_string())
            .env("LOCAL_RANK", world.local_rank.to_string())
            .env("MASTER_ADDR", &world.master_address)
            .env("MASTER_PORT", world.master_port.to_string())
            .env("FERROTYPE_SECRET", world.secret.as_deref().unwrap_or_default())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                if sender.send((Instant::now(), line)).is_err() {
                    return;
                }
            }
        });
        Self { world: world.clone(), child, lines }
    }

    pub(crate) fn start_all(part: &str, worlds: &[World]) -> Vec<Self> {
        worlds.iter().map(|world| Self::start(part, world, &[])).collect()
    }

    /// The next line with these words, and when it came.
    pub(crate) fn line(&self, words: &str, timeout: Duration) -> (Instant, String) {
        let deadline = Instant::now() + timeout;
        let mut others = Vec::new();
        loop {
            match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok((at, line)) if line.contains(words) => return (at, line),
                Ok((_, line)) => others.push(line),
                Err(error) => panic!("rank {} did not say `{words}` ({error}), but {others:#?}", self.world.rank),
            }
        }
    }

    pub(crate) fn signal(&self, signal: &str) {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args([&format!("-{signal}"), &id]).status().unwrap().success());
    }

    pub(crate) fn wait(&mut self, timeout: Duration) -> ExitStatus {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "rank {} does not end", self.world.rank);
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Rank {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
    }
}
