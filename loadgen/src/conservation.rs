//! Do both sides count the same requests? Route by route, exactly.

use std::collections::{BTreeMap, BTreeSet};

use parallax_middleware::{Outcome, Snapshot};

use crate::{render::number, report::RouteConservation};

/// Routes that a message names.
const NAMED: usize = 3;

/// The requests to one route that ended for the client.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Finished {
    pub(crate) total: u64,
    /// Those that came back with the layer's record, by the outcome in it.
    seen: [u64; Outcome::ALL.len()],
    /// Of those, the ones that the client gave up after its timeout and the layer recorded as cancelled.
    timed_out: u64,
}

impl Finished {
    /// Counts a request, with the outcome that the layer's record of it has, if there is one.
    pub(crate) fn add(&mut self, seen: Option<Outcome>, timed_out: bool) {
        self.total += 1;
        if let Some(outcome) = seen {
            self.seen[outcome as usize] += 1;
            self.timed_out += u64::from(timed_out && outcome == Outcome::Cancelled);
        }
    }

    pub(crate) fn merge(&mut self, other: &Self) {
        self.total += other.total;
        self.timed_out += other.timed_out;
        self.seen.iter_mut().zip(&other.seen).for_each(|(mine, theirs)| *mine += theirs);
    }

    fn seen(&self) -> u64 {
        self.seen.iter().sum()
    }
}

/// The requests to one route that the layer's counters say have ended.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Recorded {
    /// Those that carried a probe: the run's.
    paired: u64,
    /// All of them.
    outcomes: [u64; Outcome::ALL.len()],
}

impl Recorded {
    /// By route, as reports name them.
    pub(crate) fn of(interval: &Snapshot) -> BTreeMap<String, Self> {
        let route = |(key, counts): (&_, &parallax_middleware::RouteCounts)| {
            let outcomes = Outcome::ALL.map(|outcome| counts.outcome(outcome));
            (ToString::to_string(key), Self { paired: counts.paired, outcomes })
        };
        interval.routes().map(route).collect()
    }

    fn total(&self) -> u64 {
        self.outcomes.iter().sum()
    }
}

/// Both sides laid beside each other.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Balance {
    /// Routes with a request of the run, on either side.
    pub(crate) routes: BTreeMap<String, RouteConservation>,
    /// Of all routes.
    pub(crate) unexplained: u64,
    /// What does not fit, for people: one text a route.
    problems: Vec<String>,
}

impl Balance {
    /// Compares the routes of both sides. The layer may have recorded up to `given_up` requests that came back to
    /// nobody.
    ///
    /// The layer counts what carries a probe by itself, and fills the probe; the client counts the probes that came
    /// back. So the two must agree on each route, and of each outcome the counters must hold as many as the probes
    /// say. What else the counters hold is of others.
    pub(crate) fn of(
        client: &BTreeMap<String, Finished>,
        layer: &BTreeMap<String, Recorded>,
        mut given_up: u64,
    ) -> Self {
        let mut balance = Self::default();
        let names: BTreeSet<&String> = client.keys().chain(layer.keys()).collect();
        for name in names {
            let finished = client.get(name).cloned().unwrap_or_default();
            let recorded = layer.get(name).cloned().unwrap_or_default();
            if finished.total == 0 && recorded.paired == 0 {
                continue;
            }
            let (seen, counted) = (finished.seen(), recorded.paired);
            let more = counted.saturating_sub(seen);
            let explained = more.min(given_up);
            given_up -= explained;
            let both = || finished.seen.iter().zip(&recorded.outcomes).zip(Outcome::ALL);
            let lacking: u64 = both().map(|((told, held), _)| told.saturating_sub(*held)).sum();
            let unexplained = more - explained + seen.saturating_sub(counted).max(lacking);
            if unexplained > 0 {
                let n = number::count;
                let contradiction = both().find(|((told, held), _)| told > held);
                balance.problems.push(match contradiction {
                    Some(((told, held), outcome)) if more == explained && seen <= counted => format!(
                        "{name}: the layer told the client of {} that ended as {}, and counts {}",
                        n(*told),
                        outcome.as_str(),
                        n(*held)
                    ),
                    _ => format!(
                        "{name}: {} came back to the client with the layer's record, and the \
                         layer counts {}",
                        n(seen),
                        n(counted)
                    ),
                });
            }
            balance.unexplained += unexplained;
            balance.routes.insert(
                name.clone(),
                RouteConservation {
                    finished: finished.total,
                    recorded: recorded.total(),
                    not_seen: finished.total - seen,
                    foreign: recorded.total().saturating_sub(counted),
                    timed_out: finished.timed_out,
                    unexplained,
                },
            );
        }
        balance
    }

    /// What does not fit, on one line; empty if everything does.
    pub(crate) fn problems(&self) -> String {
        let named = self.problems.iter().take(NAMED).map(String::as_str);
        let mut text = named.collect::<Vec<_>>().join("; ");
        if self.problems.len() > NAMED {
            text += &format!("; and {} more routes", self.problems.len() - NAMED);
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What became of a request.
    #[derive(Clone, Copy, Debug)]
    enum Fate {
        /// It came back with the layer's record; given up by the client, or not.
        Paired { outcome: Outcome, timeout: bool },
        /// It came back from something outside the layer.
        NotSeen,
        /// Somebody else sent it.
        Foreign { outcome: Outcome },
        /// The client stopped waiting for it; the layer saw its end, or did not.
        GivenUp { ended: bool },
    }

    #[derive(Clone, Debug, Default)]
    struct Model {
        client: BTreeMap<String, Finished>,
        layer: BTreeMap<String, Recorded>,
        given_up: u64,
    }

    impl Model {
        fn of(requests: &[(u8, Fate)]) -> Self {
            let mut model = Self::default();
            for (route, fate) in requests {
                let name = route_name(*route);
                match *fate {
                    Fate::Paired { outcome, timeout } => {
                        model.client.entry(name.clone()).or_default().add(Some(outcome), timeout);
                        model.record(name, outcome, true);
                    }
                    Fate::NotSeen => model.client.entry(name).or_default().add(None, false),
                    Fate::Foreign { outcome } => model.record(name, outcome, false),
                    Fate::GivenUp { ended } => {
                        model.given_up += 1;
                        if ended {
                            model.record(name, Outcome::Cancelled, true);
                        }
                    }
                }
            }
            model
        }

        fn record(&mut self, name: String, outcome: Outcome, paired: bool) {
            let recorded = self.layer.entry(name).or_default();
            recorded.paired += u64::from(paired);
            recorded.outcomes[outcome as usize] += 1;
        }

        fn balance(&self) -> Balance {
            Balance::of(&self.client, &self.layer, self.given_up)
        }
    }

    fn route_name(route: u8) -> String {
        format!("GET /{route}")
    }

    fn fate() -> impl Strategy<Value = Fate> {
        let outcome = || prop::sample::select(Outcome::ALL.to_vec());
        prop_oneof![
            6 => (outcome(), any::<bool>())
                .prop_map(|(outcome, timeout)| Fate::Paired { outcome, timeout }),
            1 => Just(Fate::NotSeen),
            2 => outcome().prop_map(|outcome| Fate::Foreign { outcome }),
        ]
    }

    fn requests() -> impl Strategy<Value = Vec<(u8, Fate)>> {
        prop::collection::vec((0_u8..5, fate()), 1..200)
    }

    fn count(requests: &[(u8, Fate)], route: u8, wanted: impl Fn(&Fate) -> bool) -> u64 {
        requests.iter().filter(|(r, fate)| *r == route && wanted(fate)).count() as u64
    }

    proptest! {
        #[test]
        fn whatever_becomes_of_requests_every_one_is_accounted_for(
            mut requests in requests(),
            given_up in prop::collection::vec((0_u8..5, any::<bool>()), 0..10),
        ) {
            let fates = given_up.into_iter().map(|(r, ended)| (r, Fate::GivenUp { ended }));
            requests.extend(fates);
            let balance = Model::of(&requests).balance();
            prop_assert_eq!(balance.unexplained, 0);
            prop_assert_eq!(balance.problems(), "");
            for route in 0..5 {
                let of = |wanted: fn(&Fate) -> bool| count(&requests, route, wanted);
                let Some(found) = balance.routes.get(&route_name(route)) else {
                    prop_assert_eq!(of(|fate| matches!(fate, Fate::Paired { .. } | Fate::NotSeen)), 0);
                    continue;
                };
                let paired = of(|fate| matches!(fate, Fate::Paired { .. }));
                let foreign = of(|fate| matches!(fate, Fate::Foreign { .. }));
                let not_seen = of(|fate| matches!(fate, Fate::NotSeen));
                let ended = of(|fate| matches!(fate, Fate::GivenUp { ended: true }));
                prop_assert_eq!(found.finished, paired + not_seen);
                prop_assert_eq!(found.recorded, paired + foreign + ended);
                prop_assert_eq!((found.not_seen, found.foreign), (not_seen, foreign));
                prop_assert_eq!(found.finished + ended, found.recorded - found.foreign + found.not_seen);
                prop_assert_eq!(found.timed_out, of(|fate| {
                    matches!(fate, Fate::Paired { outcome: Outcome::Cancelled, timeout: true })
                }));
            }
        }

        #[test]
        fn a_request_that_either_side_loses_or_doubles_is_always_found(
            requests in requests(),
            route in 0_u8..5,
            outcome in prop::sample::select(Outcome::ALL.to_vec()),
            twice in any::<bool>(),
        ) {
            // The request that goes wrong is one more of the same.
            let both = {
                let mut both = requests.clone();
                both.push((route, Fate::Paired { outcome, timeout: false }));
                both
            };
            let name = route_name(route);
            let (full, mut wrong) = (Model::of(&both), Model::of(&both));
            if twice {
                wrong.client.entry(name.clone()).or_default().add(Some(outcome), false);
            } else {
                wrong.client.clone_from(&Model::of(&requests).client);
            }
            let balance = wrong.balance();
            prop_assert_eq!(balance.unexplained, 1);
            prop_assert!(balance.problems().starts_with(&name), "{}", balance.problems());

            let mut wrong = full.clone();
            if twice {
                wrong.record(name.clone(), outcome, true);
            } else {
                wrong.layer.clone_from(&Model::of(&requests).layer);
            }
            let balance = wrong.balance();
            prop_assert_eq!(balance.unexplained, 1);
            prop_assert!(balance.problems().starts_with(&name), "{}", balance.problems());
        }

        #[test]
        fn a_request_that_is_counted_on_another_route_is_found_on_both(
            requests in requests(),
            outcome in prop::sample::select(Outcome::ALL.to_vec()),
        ) {
            let mut model = Model::of(&requests);
            model.client.entry(route_name(0)).or_default().add(Some(outcome), false);
            model.record(route_name(1), outcome, true);
            let balance = model.balance();
            prop_assert_eq!(balance.unexplained, 2);
            prop_assert_eq!(balance.routes[&route_name(0)].unexplained, 1);
            prop_assert_eq!(balance.routes[&route_name(1)].unexplained, 1);
        }
    }

    #[test]
    fn an_outcome_that_the_two_sides_do_not_agree_on_is_found_and_named() {
        let mut model = Model::default();
        for _ in 0..1_200 {
            model.client.entry("GET /".to_owned()).or_default().add(Some(Outcome::Ok), false);
            model.record("GET /".to_owned(), Outcome::Ok, true);
        }
        let recorded = model.layer.get_mut("GET /").expect("it is there");
        recorded.outcomes[Outcome::Ok as usize] -= 1;
        recorded.outcomes[Outcome::Cancelled as usize] += 1;
        let balance = model.balance();
        assert_eq!(balance.unexplained, 1);
        assert_eq!(
            balance.problems(),
            "GET /: the layer told the client of 1,200 that ended as ok, and counts 1,199"
        );
    }

    #[test]
    fn a_message_names_both_counts_and_not_every_route() {
        let mut model = Model::default();
        for route in 0..5 {
            model.record(route_name(route), Outcome::Ok, true);
        }
        let problems = model.balance().problems();
        assert!(
            problems.starts_with(
                "GET /0: 0 came back to the client with the layer's record, and the layer counts \
                 1; GET /1"
            ),
            "{problems}"
        );
        assert!(problems.ends_with("; and 2 more routes"), "{problems}");
    }
}
