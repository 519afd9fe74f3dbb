//! Starts all ranks on this machine and stays until the last one has ended.

use std::ffi::{OsStr, OsString};
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::forward;
use super::signal::{self, send};
use super::world::SECRET;

const POLL: Duration = Duration::from_millis(20);
/// After one has failed the others hear of it from each other, say so, and end.
const REPORTING: Duration = Duration::from_secs(5);
/// After which who was asked to end is made to: the first rank may be writing the checkpoint of a large model.
const ENDING: Duration = Duration::from_mins(1);
/// As above where someone asked for it, on a slow disk too. Who cannot wait interrupts the launcher once more.
const ENDING_ON_SIGNAL: Duration = Duration::from_mins(5);
/// For the last lines of those that have ended. What they started themselves may hold the pipe for longer.
const LAST_LINES: Duration = Duration::from_secs(1);

/// What to start.
#[derive(Clone, Debug)]
pub struct LaunchOptions {
    /// On this machine.
    pub processes: usize,
    /// Machines in all; on each the same is to be launched, with its own `node_rank`.
    pub nodes: usize,
    pub node_rank: usize,
    /// Where rank 0 is found.
    pub master_address: String,
    /// `None`: one that is free, which only one machine can choose.
    pub master_port: Option<u16>,
    /// The exit code of a rank that ends only because another was lost. It is not named as the first to fail, however fast it
    /// was.
    pub bystander_code: Option<i32>,
    /// A signal that came, to be sent on to all ranks; 0 for none. It is set to 0 when that was done.
    pub signal: Arc<AtomicI32>,
}

impl Default for LaunchOptions {
    fn default() -> Self {
        Self {
            processes: 1,
            nodes: 1,
            node_rank: 0,
            master_address: Ipv4Addr::LOCALHOST.to_string(),
            master_port: None,
            bystander_code: None,
            signal: Arc::default(),
        }
    }
}

/// Why nothing was launched.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    #[error("{what} = {value} is not possible: {expected}")]
    Option { what: &'static str, value: String, expected: &'static str },
    #[error("cannot start rank {rank}: {program:?}")]
    Start { rank: usize, program: OsString, source: io::Error },
    #[error("cannot {action}")]
    Io { action: &'static str, source: io::Error },
}

/// How it went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LaunchEnd {
    /// `None`: all ended well.
    pub failure: Option<FirstFailure>,
    /// The last signal that was sent on.
    pub signal: Option<i32>,
}

/// The rank that failed first, which is why others did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FirstFailure {
    pub rank: usize,
    pub exit: ChildExit,
}

/// How a process ended that did not end well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChildExit {
    Code(i32),
    Signal(i32),
}

impl LaunchEnd {
    /// What a shell would make of it.
    pub fn exit_code(&self) -> i32 {
        match self.failure.map(|failure| failure.exit) {
            None => 0,
            Some(ChildExit::Code(code)) => code,
            Some(ChildExit::Signal(signal)) => 128 + signal,
        }
    }
}

impl std::fmt::Display for FirstFailure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.exit {
            ChildExit::Code(code) => write!(f, "rank {} ended with exit code {code}", self.rank),
            ChildExit::Signal(signal) => write!(f, "rank {} was killed by {}", self.rank, signal::name(signal)),
        }
    }
}

/// Runs the program once a rank, with torchrun's variables. Rank 0 has this process's output; each line of the others comes on
/// standard error, after `[rank] `. Comes back when all have ended. To be called from a thread that stays until then: the
/// ranks are told to end when it ends.
pub fn launch(program: &OsStr, arguments: &[OsString], options: &LaunchOptions) -> Result<LaunchEnd, LaunchError> {
    let launch = Launch::prepare(program, arguments, options)?;
    let mut ranks = Ranks { running: Vec::new(), forwarders: Vec::new(), ended: Vec::new() };
    for local_rank in 0..options.processes {
        let rank = options.node_rank * options.processes + local_rank;
        let started = launch.start(rank, local_rank).and_then(|mut child| {
            let forwarders = if local_rank == 0 { Ok(Vec::new()) } else { forward::lines(rank, &mut child) };
            ranks.running.push(Running { rank, child });
            forwarders.map_err(|source| LaunchError::Io { action: "start a thread for a rank's output", source })
        });
        match started {
            Ok(forwarders) => ranks.forwarders.extend(forwarders),
            Err(error) => {
                ranks.kill();
                return Err(error);
            }
        }
    }
    let signal = ranks.wait(options);
    Ok(LaunchEnd { failure: ranks.first_failure(options.bystander_code), signal })
}

struct Launch<'a> {
    program: &'a OsStr,
    arguments: &'a [OsString],
    options: &'a LaunchOptions,
    port: u16,
    secret: Option<String>,
}

impl<'a> Launch<'a> {
    fn prepare(program: &'a OsStr, arguments: &'a [OsString], options: &'a LaunchOptions) -> Result<Self, LaunchError> {
        let bad = |what, value: usize, expected| Err(LaunchError::Option { what, value: value.to_string(), expected });
        if options.processes == 0 || options.processes > 1024 {
            return bad("processes", options.processes, "from 1 to 1024");
        }
        if options.nodes == 0 || options.nodes > 4096 {
            return bad("nodes", options.nodes, "from 1 to 4096");
        }
        if options.node_rank >= options.nodes {
            return bad("node_rank", options.node_rank, "below the number of nodes");
        }
        let port = match options.master_port {
            Some(port) => port,
            None if options.nodes > 1 => {
                return bad("nodes", options.nodes, "with several, a master_port has to be chosen");
            }
            None => free_port().map_err(|source| LaunchError::Io { action: "find a free port", source })?,
        };
        // Ranks on other machines have to have the same one, so it can only come from where all of this was started.
        let secret = if options.nodes > 1 {
            None
        } else {
            Some(secret().map_err(|source| LaunchError::Io { action: "draw a secret from /dev/urandom", source })?)
        };
        Ok(Self { program, arguments, options, port, secret })
    }

    fn start(&self, rank: usize, local_rank: usize) -> Result<Child, LaunchError> {
        let options = self.options;
        let mut command = Command::new(self.program);
        command
            .args(self.arguments)
            .stdin(Stdio::null())
            .env("RANK", rank.to_string())
            .env("WORLD_SIZE", (options.processes * options.nodes).to_string())
            .env("LOCAL_RANK", local_rank.to_string())
            .env("LOCAL_WORLD_SIZE", options.processes.to_string())
            .env("MASTER_ADDR", &options.master_address)
            .env("MASTER_PORT", self.port.to_string())
            .env_remove("TORCHELASTIC_USE_AGENT_STORE");
        if let Some(secret) = &self.secret {
            command.env(SECRET, secret);
        }
        if local_rank > 0 {
            command.stdout(Stdio::piped()).stderr(Stdio::piped());
        }
        signal::prepare(&mut command);
        command.spawn().map_err(|source| LaunchError::Start { rank, program: self.program.to_owned(), source })
    }
}

fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

fn secret() -> io::Result<String> {
    let mut bytes = [0; 16];
    io::Read::read_exact(&mut std::fs::File::open("/dev/urandom")?, &mut bytes)?;
    Ok(format!("{:032x}", u128::from_le_bytes(bytes)))
}

struct Running {
    rank: usize,
    child: Child,
}

struct Ranks {
    running: Vec<Running>,
    forwarders: Vec<JoinHandle<()>>,
    /// In the order in which they did.
    ended: Vec<(usize, Option<ChildExit>)>,
}

impl Ranks {
    /// Until all have ended. The last signal that was sent on.
    fn wait(&mut self, options: &LaunchOptions) -> Option<i32> {
        let mut ending = Ending::default();
        let mut sent_on = None;
        loop {
            self.collect();
            if self.running.is_empty() {
                break;
            }
            let now = Instant::now();
            let signal = options.signal.swap(0, Ordering::AcqRel);
            if signal != 0 {
                sent_on = Some(signal);
                self.signal(signal);
                ending.kill_by(now + ENDING_ON_SIGNAL);
            }
            // After a signal all end by themselves, one after the other; another signal would interrupt the last one's checkpoint.
            if sent_on.is_none() && self.ended.iter().any(|(_, exit)| exit.is_some()) {
                ending.terminate_at.get_or_insert(now + REPORTING);
            }
            if ending.terminate_at.is_some_and(|at| now >= at) && !ending.is_terminating {
                ending.is_terminating = true;
                self.signal(libc::SIGTERM);
                ending.kill_by(now + ENDING);
            }
            if ending.kill_at.is_some_and(|at| now >= at) {
                self.kill();
                break;
            }
            std::thread::sleep(POLL);
        }
        let deadline = Instant::now() + LAST_LINES;
        while Instant::now() < deadline && self.forwarders.iter().any(|thread| !thread.is_finished()) {
            std::thread::sleep(Duration::from_millis(2));
        }
        sent_on
    }

    fn collect(&mut self) {
        let ended = &mut self.ended;
        self.running.retain_mut(|running| match running.child.try_wait() {
            Ok(None) => true,
            Ok(Some(status)) => {
                ended.push((running.rank, exit(status)));
                false
            }
            // It cannot be waited for, so it is not there.
            Err(_) => {
                ended.push((running.rank, Some(ChildExit::Code(1))));
                false
            }
        });
    }

    fn signal(&self, signal: i32) {
        self.running.iter().for_each(|running| send(&running.child, signal));
    }

    /// With all that they started.
    fn kill(&mut self) {
        for running in &mut self.running {
            signal::kill_group(&running.child);
            if let Ok(status) = running.child.wait() {
                self.ended.push((running.rank, exit(status)));
            }
        }
        self.running.clear();
    }

    fn first_failure(&self, bystander: Option<i32>) -> Option<FirstFailure> {
        let failed = || self.ended.iter().filter_map(|(rank, exit)| Some(FirstFailure { rank: *rank, exit: (*exit)? }));
        let is_cause = |failure: &FirstFailure| bystander.is_none_or(|code| failure.exit != ChildExit::Code(code));
        failed().find(is_cause).or_else(|| failed().next())
    }
}

/// When what happens to ranks that run on.
#[derive(Default)]
struct Ending {
    terminate_at: Option<Instant>,
    is_terminating: bool,
    kill_at: Option<Instant>,
}

impl Ending {
    fn kill_by(&mut self, at: Instant) {
        self.kill_at = Some(self.kill_at.map_or(at, |earlier| earlier.min(at)));
    }
}

fn exit(status: ExitStatus) -> Option<ChildExit> {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (Some(0), _) => None,
        (Some(code), _) => Some(ChildExit::Code(code)),
        (None, signal) => Some(ChildExit::Signal(signal.unwrap_or(0))),
    }
}
