//! Whether an endpoint that has failed works again.

use std::sync::Weak;
use std::time::Duration;

use super::answer;
use super::client::{Lost, Reply};
use super::fleet::Fleet;

/// For an answer to `/health` and `/models`, which need no model.
const SOON: Duration = Duration::from_secs(10);
/// For the small question.
const IN_TIME: Duration = Duration::from_secs(30);

/// Leaves `endpoint` alone for its pause, then asks it whether it works; again and again, until it does or nobody needs it.
pub(super) fn cool(fleet: Weak<Fleet>, endpoint: usize) {
    let Ok(runtime) = tokio::runtime::Handle::try_current() else {
        // Requests are made on a runtime, so their ends are there too.
        if let Some(fleet) = fleet.upgrade() {
            fleet.reopen(endpoint);
        }
        return;
    };
    runtime.spawn(async move {
        while let Some(pause) = fleet.upgrade().and_then(|fleet| fleet.pause(endpoint)) {
            tokio::time::sleep(pause).await;
            let Some(fleet) = fleet.upgrade() else { return };
            match probe(&fleet, endpoint).await {
                Ok(()) => return fleet.reopen(endpoint),
                Err(why) => fleet.cool_on(endpoint, why),
            }
        }
    });
}

/// Says what is wrong, if anything is. Its `/health` may be missing, and what its `/models` says does not matter; but it must
/// answer a question, for which one token is paid.
async fn probe(fleet: &Fleet, endpoint: usize) -> Result<(), String> {
    let Some(address) = fleet.addresses.get(endpoint) else { return Ok(()) };
    let soon = SOON.min(fleet.timeout);
    works("/health", &fleet.client.get(&address.health, soon).await)?;
    works("/models", &fleet.client.get(&address.models, soon).await)?;
    let answer = fleet.client.post(&address.chat, fleet.control(), IN_TIME.min(fleet.timeout)).await;
    works("a small question", &answer)?;
    match answer {
        Ok(reply) if reply.status >= 300 && fleet.must_answer(endpoint) => {
            let words = answer::words(&reply.body, fleet.client.token());
            Err(format!("a small question is refused with {}: {words}", reply.status))
        }
        _ => Ok(()),
    }
}

fn works(what: &str, answer: &Result<Reply, Lost>) -> Result<(), String> {
    match answer {
        Ok(reply) if reply.status < 500 => Ok(()),
        Ok(reply) => Err(format!("{what} is answered with {}", reply.status)),
        Err(Lost::TooLarge) => Ok(()),
        Err(Lost::TimedOut) => Err(format!("{what} is not answered in time")),
        Err(Lost::Unreachable(why) | Lost::Broken(why) | Lost::Shortage(why)) => Err(why.clone()),
    }
}
