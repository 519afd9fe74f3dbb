//! Turns at endpoints that nobody listens at.

use super::*;
use crate::server::Endpoint as Written;

const SOON: Duration = Duration::from_millis(20);

fn fleet(caps: &[usize]) -> Arc<Fleet> {
    // Nobody listens there.
    let endpoint =
        |(n, cap): (usize, &usize)| Written { url: format!("http://127.0.0.1:{}/v1", n + 1), in_flight: Some(*cap) };
    let operations = Operations {
        endpoints: caps.iter().enumerate().map(endpoint).collect(),
        cool_down: 1000.0,
        ..Operations::default()
    };
    let client = Client::new(&operations, 1).unwrap();
    Arc::new(Fleet::new(operations.addresses().unwrap(), &operations, client, Default::default()))
}

async fn turn(fleet: &Arc<Fleet>, company: Company) -> Option<Permit> {
    tokio::time::timeout(SOON, fleet.turn(company, None, true)).await.ok().map(Result::unwrap)
}

#[tokio::test]
async fn the_least_loaded_for_its_limit_is_asked() {
    let fleet = fleet(&[1, 2, 4]);
    let mut held = Vec::new();
    for _ in 0..7 {
        held.push(turn(&fleet, Company::Anyone).await.unwrap());
    }
    let mut at = [0; 3];
    for permit in &held {
        at[permit.endpoint] += 1;
    }
    assert_eq!(at, [1, 2, 4]);
    assert!(turn(&fleet, Company::Anyone).await.is_none());
    held.pop();
    let again = fleet.turn(Company::Anyone, held.first().map(|permit| permit.endpoint), false).await.unwrap();
    drop(again);
    held.retain(|permit| permit.endpoint == 2);
    let elsewhere = fleet.turn(Company::Anyone, Some(0), false).await.unwrap();
    assert_eq!(elsewhere.endpoint, 1);
}

#[tokio::test]
async fn suspects_are_with_suspects_and_some_are_alone() {
    let fleet = fleet(&[8]);
    let ordinary = turn(&fleet, Company::Anyone).await.unwrap();
    let (suspect, lonely) = (fleet.turn(Company::Suspects, None, false), fleet.turn(Company::Nobody, None, false));
    let others = async {
        tokio::time::sleep(SOON).await;
        assert!(turn(&fleet, Company::Anyone).await.is_none(), "it is reserved");
        drop(ordinary);
    };
    let lonely_first = async {
        let lonely = lonely.await.unwrap();
        assert_eq!(fleet.status()[0].in_flight, 1);
        tokio::time::sleep(SOON).await;
        assert_eq!(fleet.status()[0].in_flight, 1);
        drop(lonely);
    };
    let (suspect, (), ()) = tokio::join!(suspect, others, lonely_first);
    let suspects = (suspect.unwrap(), turn(&fleet, Company::Suspects).await.unwrap());
    assert!(turn(&fleet, Company::Anyone).await.is_none());
    drop(suspects);
    assert!(turn(&fleet, Company::Anyone).await.is_some());
}

#[tokio::test]
async fn suspects_do_not_wait_for_an_endpoint_that_is_gone() {
    let fleet = fleet(&[8, 8]);
    let busy = turn(&fleet, Company::Anyone).await.unwrap();
    let other = turn(&fleet, Company::Anyone).await.unwrap();
    let (gone, open) = (busy.endpoint, other.endpoint);
    assert!(busy.end(Sign::Gone("refused")).cools_now);
    assert!(turn(&fleet, Company::Nobody).await.is_none(), "it will be back in a moment");
    assert!(turn(&fleet, Company::Anyone).await.is_some_and(|permit| permit.endpoint == open));
    for _ in 0..3 {
        fleet.cool_on(gone, "refused".to_owned());
    }
    let lonely = fleet.turn(Company::Nobody, None, false);
    let end_other = async {
        tokio::time::sleep(SOON).await;
        drop(other);
    };
    let (lonely, ()) = tokio::join!(lonely, end_other);
    assert_eq!(lonely.unwrap().endpoint, open);
}

#[tokio::test]
async fn who_fails_alone_is_only_blamed_where_the_endpoint_was_sound() {
    let fleet = fleet(&[8]);
    let alone = turn(&fleet, Company::Nobody).await.unwrap();
    let facts = alone.end(Sign::Broken("500"));
    assert!(facts.was_alone && facts.cools_now && !facts.is_to_blame, "nobody knew whether it works");
    fleet.reopen(0);
    let facts = turn(&fleet, Company::Nobody).await.unwrap().end(Sign::Broken("500"));
    assert!(facts.was_alone && facts.is_to_blame);
    fleet.reopen(0);
    turn(&fleet, Company::Anyone).await.unwrap().end(Sign::Answered);
    let (first, second) = (turn(&fleet, Company::Anyone).await.unwrap(), turn(&fleet, Company::Anyone).await.unwrap());
    let facts = [first.end(Sign::Broken("500")), second.end(Sign::Broken("500"))];
    assert!(facts.iter().all(|facts| !facts.was_alone && !facts.is_to_blame && !facts.cools_now));
    let facts = turn(&fleet, Company::Anyone).await.unwrap().end(Sign::Broken("500"));
    assert!(facts.cools_now && !facts.is_to_blame, "it has failed others since it last answered");
}
