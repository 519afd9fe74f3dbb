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
    let again =
        fleet.turn(Company::Anyone, held.first().map(|permit| Avoid::Rather(permit.endpoint)), false).await.unwrap();
    drop(again);
    held.retain(|permit| permit.endpoint == 2);
    let elsewhere = fleet.turn(Company::Anyone, Some(Avoid::Rather(0)), false).await.unwrap();
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

#[tokio::test]
async fn an_endpoint_that_is_asked_too_much_is_asked_nothing_for_as_long_as_it_says() {
    let fleet = fleet(&[4]);
    let too_many = |milliseconds: u64| Sign::TooMany { words: "429", wait: Some(Duration::from_millis(milliseconds)) };
    let mut held = Vec::new();
    for _ in 0..4 {
        held.push(turn(&fleet, Company::Anyone).await.unwrap());
    }
    let last = held.pop().unwrap();
    for permit in held {
        assert!(fleet.status()[0].cooling.is_none());
        permit.end(too_many(200));
    }
    assert!(fleet.status()[0].cooling.is_some() && !fleet.status()[0].is_resting, "it works");
    // It was sent before, and is no reason to wait for less long.
    last.end(too_many(1));
    let began = Instant::now();
    assert!(turn(&fleet, Company::Anyone).await.is_none());
    let permit = fleet.turn(Company::Anyone, None, false).await.unwrap();
    assert!(began.elapsed() >= Duration::from_millis(100), "{:?}", began.elapsed());
    permit.end(Sign::Answered);
    turn(&fleet, Company::Anyone).await.unwrap().end(too_many(200));
    assert!(turn(&fleet, Company::Anyone).await.is_some(), "it has answered between");
}

#[tokio::test]
async fn what_one_refused_waits_for_another_as_long_as_there_is_one() {
    let fleet = fleet(&[8, 1]);
    let (one, other) = (turn(&fleet, Company::Anyone).await.unwrap(), turn(&fleet, Company::Anyone).await.unwrap());
    let busy = if one.endpoint == 1 { one } else { other };
    assert_eq!(busy.endpoint, 1);
    let elsewhere = || fleet.turn(Company::Anyone, Some(Avoid::Strictly(0)), false);
    assert!(tokio::time::timeout(SOON, elsewhere()).await.is_err(), "only the one that refused it has room");
    let end = async {
        tokio::time::sleep(SOON).await;
        busy.end(Sign::Answered);
    };
    let (found, ()) = tokio::join!(elsewhere(), end);
    let found = found.unwrap();
    assert_eq!(found.endpoint, 1);
    assert!(found.end(Sign::Gone("refused")).cools_now);
    assert_eq!(elsewhere().await.unwrap().endpoint, 0, "no other is open");
}

#[tokio::test]
async fn a_suspect_that_one_refused_waits_for_another_too() {
    let fleet = fleet(&[8, 8]);
    for company in [Company::Suspects, Company::Nobody] {
        let held = fleet.turn(Company::Anyone, Some(Avoid::Strictly(0)), true).await.unwrap();
        assert_eq!(held.endpoint, 1);
        let elsewhere = fleet.turn(company, Some(Avoid::Strictly(0)), false);
        let end = async {
            tokio::time::sleep(SOON).await;
            assert_eq!(
                turn(&fleet, Company::Anyone).await.map(|permit| permit.endpoint),
                Some(0),
                "the other is reserved"
            );
            held.end(Sign::Answered);
        };
        let (found, ()) = tokio::join!(elsewhere, end);
        assert_eq!(found.unwrap().endpoint, 1);
    }
    // One that is reserved already is of no use to it, if that is the one that refused it.
    let (one, other) = (turn(&fleet, Company::Anyone).await.unwrap(), turn(&fleet, Company::Anyone).await.unwrap());
    let (at, beside) = (one.endpoint, other.endpoint);
    let first = async { fleet.turn(Company::Suspects, Some(Avoid::Strictly(beside)), false).await.unwrap() };
    let second = async { fleet.turn(Company::Suspects, Some(Avoid::Strictly(at)), false).await.unwrap() };
    let end = async {
        tokio::time::sleep(SOON).await;
        assert!(turn(&fleet, Company::Anyone).await.is_none(), "both are reserved");
        other.end(Sign::Answered);
        tokio::time::sleep(SOON).await;
        one.end(Sign::Answered);
    };
    let (first, second, ()) = tokio::join!(first, second, end);
    assert_eq!((first.endpoint, second.endpoint), (at, beside));
}

#[tokio::test]
async fn an_endpoint_that_refuses_what_others_answer_is_left_alone() {
    let fleet = fleet(&[8, 8]);
    for contradicted in 1..=3 {
        assert!(fleet.refused(0).is_none());
        fleet.is_contradicted(0, "400: too long");
        let status = &fleet.status()[0];
        assert_eq!((status.cooling.is_some(), status.is_resting), (contradicted == 3, contradicted == 3));
    }
    assert_eq!(fleet.status()[0].last_failure, "it refuses what others answer (400: too long)");
    assert!(fleet.must_answer(0) && !fleet.must_answer(1));
    assert_eq!(turn(&fleet, Company::Anyone).await.unwrap().endpoint, 1);
    fleet.reopen(0);
    for _ in 0..2 {
        fleet.refused(0);
    }
    let permit = fleet.turn(Company::Anyone, Some(Avoid::Strictly(1)), true).await.unwrap();
    permit.end(Sign::Answered);
    assert!(!fleet.must_answer(0));
    fleet.refused(0);
    fleet.is_contradicted(0, "400: too long");
    assert!(fleet.status()[0].cooling.is_none(), "it has answered between");
}
