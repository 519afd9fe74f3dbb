//! Watches over a mesh on a thread of its own: says to the others that this rank lives, notices which of them do not, and tells
//! everyone what it comes to. It never waits for a socket.

use std::net::Shutdown;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use super::error::RankError;
use super::frame::{Control, shorten};
use super::inbox::lock;
use super::link::Put;
use super::shared::Shared;
use super::verdict::{Lost, Sign};

const TICK: Duration = Duration::from_millis(50);
const TICK_WHEN_SUSPICIOUS: Duration = Duration::from_millis(20);
const TICK_WHEN_BUSY: Duration = Duration::from_millis(2);
/// No thread that is ready to run waits for that long, unless it was stopped.
const PAUSE: Duration = Duration::from_secs(2);
const HEARTBEAT: Duration = Duration::from_secs(1);
/// As long as it may take to tell others what happened: as long as pieces that are under way.
const TELLING: Duration = Duration::from_millis(400);

pub(super) fn run(shared: &Arc<Shared>) {
    // Six of them may be missing, also where the silence to be noticed is shorter than usual.
    let interval = HEARTBEAT.min(shared.options.silence / 6);
    let mut beat = Instant::now();
    let mut last = Instant::now();
    let mut untold = Vec::new();
    loop {
        let verdict = {
            let mut state = lock(&shared.state);
            if state.verdict.is_none() && state.untold.is_empty() && !state.leaving {
                let tick = match (untold.is_empty(), state.suspicions.is_empty()) {
                    (true, true) => TICK,
                    (true, false) => TICK_WHEN_SUSPICIOUS,
                    (false, _) => TICK_WHEN_BUSY,
                };
                state =
                    shared.changed.wait_timeout(state, tick.min(interval)).unwrap_or_else(PoisonError::into_inner).0;
            }
            if state.verdict.is_none() && !state.leaving {
                let lost = state.suspicions.decide(shared.rank, &present(shared), Instant::now());
                if let Some(lost) = lost {
                    shared.set_verdict(&mut state, &lost);
                }
            }
            if state.verdict.is_none() && state.leaving {
                return;
            }
            untold.append(&mut state.untold);
            state.verdict.clone()
        };
        if let Some(lost) = verdict {
            return conclude(shared, lost);
        }
        untold.retain(|suspicion| !tell_arbiter(shared, suspicion));
        let now = Instant::now();
        forgive_pause(shared, now - last);
        last = now;
        if now >= beat {
            beat = now + interval;
            let frame = Control::Heartbeat.frame();
            // One that is behind others, or behind a message, says nothing that they do not.
            let ready = shared.links().filter(|(_, link)| link.is_live() && link.flush() == Put::Sent);
            ready.for_each(|(_, link)| _ = link.put(&frame));
        }
        notice_silence(shared);
    }
}

fn present(shared: &Shared) -> Vec<usize> {
    shared.links().filter(|(_, link)| link.is_live()).map(|(rank, _)| rank).collect()
}

/// Whether that is done. If it does not get there, this rank decides by itself in the end.
fn tell_arbiter(shared: &Shared, (rank, sign, reason): &(usize, Sign, String)) -> bool {
    let arbiter = lock(&shared.state).suspicions.arbiter(shared.rank, &present(shared));
    let frame = Control::Suspect { rank: *rank, sign: *sign, reason: shorten(reason) }.frame();
    shared.link(arbiter).is_none_or(|link| link.put(&frame) != Put::Busy)
}

/// When this process was stopped itself, or its machine was, silence is no wonder: what the others said has not been read yet.
fn forgive_pause(shared: &Shared, since_last: Duration) {
    if since_last < PAUSE {
        return;
    }
    for (_, link) in shared.links() {
        let shifted = link.heard_at.load(Ordering::Acquire) + since_last.as_millis() as u64;
        link.heard_at.fetch_max(shifted.min(shared.clock()), Ordering::AcqRel);
    }
}

fn notice_silence(shared: &Shared) {
    let silence = shared.options.silence;
    let now = shared.clock();
    for (rank, link) in shared.links().filter(|(_, link)| link.is_live()) {
        let quiet = now.saturating_sub(link.heard_at.load(Ordering::Acquire));
        if quiet > silence.as_millis() as u64 {
            let reason = format!(
                "nothing came from it for {:.1} s; it was stopped, or the network to it was cut",
                silence.as_secs_f64()
            );
            shared.suspect(rank, Sign::Silent, reason);
        }
    }
}

/// Tells everyone, and then this rank's own callers.
fn conclude(shared: &Arc<Shared>, Lost { rank, reason }: Lost) {
    let error = RankError::PeerLost { rank, reason: reason.clone() };
    call(shared, &error);
    let frame = Control::Lost { rank, reason }.frame();
    let mut telling: Vec<_> = Vec::new();
    for (peer, link) in shared.links().filter(|(_, link)| link.is_live()) {
        match link.put(&frame) {
            // It may be stopped, and a caller may be waiting for it to take a piece.
            Put::Busy if peer == rank => link.shut(Shutdown::Both),
            Put::Sent => link.shut(Shutdown::Write),
            Put::Waits if peer == rank => link.shut(Shutdown::Write),
            put @ (Put::Busy | Put::Waits) => telling.push((link, put)),
            Put::Broken => {}
        }
    }
    let deadline = Instant::now() + TELLING;
    while !telling.is_empty() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(2));
        telling.retain_mut(|(link, put)| {
            *put = if *put == Put::Busy { link.put(&frame) } else { link.flush().when_in_line() };
            match put {
                Put::Sent => link.shut(Shutdown::Write),
                Put::Busy | Put::Waits => return true,
                Put::Broken => {}
            }
            false
        });
    }
    for (link, _) in telling {
        link.shut(Shutdown::Both);
    }
    shared.publish(error);
}

/// On a thread of their own, for they may take long.
fn call(shared: &Arc<Shared>, error: &RankError) {
    let callbacks = {
        let mut state = lock(&shared.state);
        state.has_called = true;
        std::mem::take(&mut state.callbacks)
    };
    if callbacks.is_empty() {
        return;
    }
    let callbacks = Arc::new(callbacks);
    let (theirs, error_there) = (Arc::clone(&callbacks), error.clone());
    let thread = std::thread::Builder::new().name("lost-rank".to_owned());
    if thread.spawn(move || theirs.iter().for_each(|callback| callback(&error_there))).is_err() {
        callbacks.iter().for_each(|callback| callback(error));
    }
}
