//! What models are built from: the recent history of each user, kept from one build to the next, so that
//! a build reads only what is new.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use rustc_hash::FxHashMap;

use super::{Catalogue, Coverage, Index, Model, NEIGHBOURS, Neighbours, TRENDING};
use crate::interaction::{InteractionKind, StoredInteraction};

/// Entities that are kept of a user, each once. Pairs grow with its square.
pub(crate) const USER_HISTORY: usize = 32;
/// Users that are kept; past it, those that were away longest are forgotten.
const USERS: usize = 250_000;
/// After this time an interaction counts half for what is trending.
const HALF_LIFE_MS: f64 = 24.0 * 3_600.0 * 1_000.0;

/// Everything read so far, as far as models need it.
#[derive(Debug)]
pub(crate) struct Histories {
    catalogue: Arc<Catalogue>,
    users: FxHashMap<i64, User>,
    /// By entity.
    trends: Vec<Trend>,
    generation: u64,
    /// Up to which revision and id everything has been read.
    pub(crate) entity_revision: i64,
    pub(crate) interactions: i64,
    user_limit: usize,
}

#[derive(Debug, Default)]
struct User {
    /// Oldest first.
    met: Vec<Index>,
    last_interaction: i64,
}

/// A sum in which every interaction halves with each half-life, as it stood at `at_ms`.
#[derive(Clone, Copy, Debug, Default)]
struct Trend {
    score: f64,
    at_ms: i64,
}

impl Trend {
    fn add(&mut self, weight: f64, at_ms: i64) {
        if at_ms >= self.at_ms {
            self.score = self.score_at(at_ms) + weight;
            self.at_ms = at_ms;
        } else {
            self.score += decayed(weight, self.at_ms - at_ms);
        }
    }

    fn score_at(self, at_ms: i64) -> f64 {
        decayed(self.score, at_ms - self.at_ms)
    }
}

#[expect(clippy::cast_precision_loss, reason = "milliseconds since 1970 fit into 53 bits")]
fn decayed(score: f64, age_ms: i64) -> f64 {
    score * (-(age_ms.max(0) as f64) / HALF_LIFE_MS).exp2()
}

impl Default for Histories {
    fn default() -> Self {
        Self {
            catalogue: Arc::default(),
            users: FxHashMap::default(),
            trends: Vec::new(),
            generation: 0,
            entity_revision: 0,
            interactions: 0,
            user_limit: USERS,
        }
    }
}

impl Histories {
    /// Takes up entities in the order of their revisions: revision, id, title.
    pub(crate) fn add_entities(&mut self, entities: &[(i64, i64, String)]) {
        // A copy where the current model still holds the same one, once a refresh.
        let catalogue = Arc::make_mut(&mut self.catalogue);
        for (revision, id, title) in entities {
            catalogue.put(*id, title);
            self.entity_revision = *revision;
        }
        self.trends.resize(catalogue.ids.len(), Trend::default());
    }

    /// Takes up interactions in the order of their ids.
    pub(crate) fn add_interactions(&mut self, interactions: &[(i64, StoredInteraction)]) {
        for (id, interaction) in interactions {
            self.interactions = *id;
            let Some(&entity) = self.catalogue.index.get(&interaction.entity_id) else { continue };
            self.trends[entity as usize]
                .add(InteractionKind::weight(interaction.kind), interaction.occurred_at_ms);
            let user = self.users.entry(interaction.user_id).or_default();
            user.last_interaction = *id;
            user.met.retain(|&met| met != entity);
            if user.met.len() == USER_HISTORY {
                user.met.remove(0);
            }
            user.met.push(entity);
        }
        // Now and then, not at every user past the limit: to forget, all have to be looked at.
        if self.users.len() > self.user_limit + self.user_limit / 8 {
            self.forget_users();
        }
    }

    fn forget_users(&mut self) {
        let mut last: Vec<i64> = self.users.values().map(|user| user.last_interaction).collect();
        let excess = last.len() - self.user_limit;
        let (_, &mut oldest_kept, _) = last.select_nth_unstable(excess);
        self.users.retain(|_, user| user.last_interaction >= oldest_kept);
    }

    /// Builds the model of all that was taken up. Takes a while: not for a thread that serves requests.
    pub(crate) fn build(&mut self, now_ms: i64) -> Model {
        self.generation += 1;
        let (neighbours, met_by) = self.neighbours();
        let mut trending: Vec<(Index, f64)> = (0..)
            .zip(&self.trends)
            .filter(|(_, trend)| trend.score > 0.0)
            .map(|(index, trend)| (index, trend.score_at(now_ms)))
            .collect();
        keep_best(&mut trending, TRENDING);
        Model {
            neighbours,
            trending,
            met_by,
            coverage: Coverage {
                generation: self.generation,
                refreshed_at: SystemTime::now(),
                took: Duration::ZERO,
                entities: self.catalogue.ids.len(),
                entity_revision: self.entity_revision,
                interactions: self.interactions,
            },
            catalogue: self.catalogue.clone(),
        }
    }

    /// The neighbours of every entity, and by how many users each was met.
    fn neighbours(&self) -> (Neighbours, Vec<u32>) {
        let entities = self.catalogue.ids.len();
        let users: Vec<&[Index]> = self.users.values().map(|user| &user.met[..]).collect();
        let mut met_by = vec![0_u32; entities];
        for &entity in users.iter().copied().flatten() {
            met_by[entity as usize] += 1;
        }
        // The users of each entity, one entity after the other.
        let mut starts = Vec::with_capacity(entities + 1);
        let mut total = 0_usize;
        for &count in &met_by {
            starts.push(total);
            total += count as usize;
        }
        starts.push(total);
        let mut postings = vec![0_u32; total];
        let mut next = starts.clone();
        for (user, met) in (0_u32..).zip(&users) {
            for &entity in *met {
                let place = &mut next[entity as usize];
                postings[*place] = user;
                *place += 1;
            }
        }

        let mut neighbours = Neighbours { flat: Vec::new(), ends: Vec::with_capacity(entities) };
        // Users that met both, by entity; only those in `touched` are not zero.
        let mut together = vec![0_u32; entities];
        let mut touched: Vec<Index> = Vec::new();
        let mut candidates: Vec<(Index, f64)> = Vec::new();
        for entity in 0..entities {
            for &user in &postings[starts[entity]..starts[entity + 1]] {
                for &other in users[user as usize] {
                    let count = &mut together[other as usize];
                    if *count == 0 {
                        touched.push(other);
                    }
                    *count += 1;
                }
            }
            for other in touched.drain(..) {
                let both = std::mem::take(&mut together[other as usize]);
                if other as usize != entity {
                    let either = f64::from(met_by[entity]) * f64::from(met_by[other as usize]);
                    candidates.push((other, f64::from(both) / either.sqrt()));
                }
            }
            keep_best(&mut candidates, NEIGHBOURS);
            #[expect(clippy::cast_possible_truncation, reason = "a cosine needs no 53 bits")]
            neighbours
                .flat
                .extend(candidates.drain(..).map(|(other, cosine)| (other, cosine as f32)));
            neighbours.ends.push(u32::try_from(neighbours.flat.len()).unwrap_or(u32::MAX));
        }
        (neighbours, met_by)
    }
}

/// Leaves the `limit` best, best first; of equals the one that came into the catalogue first.
pub(super) fn keep_best(scored: &mut Vec<(Index, f64)>, limit: usize) {
    let better = |a: &(Index, f64), b: &(Index, f64)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
    if limit == 0 {
        scored.clear();
    } else if scored.len() > limit {
        scored.select_nth_unstable_by(limit - 1, better);
        scored.truncate(limit);
    }
    scored.sort_unstable_by(better);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Entities 1 to `entities`; each user meets what is listed, in turn, at time 0.
    fn histories(entities: i64, met: &[(i64, &[i64])]) -> Histories {
        let mut histories = Histories::default();
        let rows: Vec<_> = (1..=entities).map(|id| (id, id, format!("title {id}"))).collect();
        histories.add_entities(&rows);
        let mut id = 0;
        for &(user_id, entities) in met {
            for &entity_id in entities {
                id += 1;
                let row = StoredInteraction { user_id, entity_id, kind: 1, occurred_at_ms: 0 };
                histories.add_interactions(&[(id, row)]);
            }
        }
        histories
    }

    fn ids(list: &[crate::entity::Listed<'_>]) -> Vec<i64> {
        list.iter().map(|listed| listed.id).collect()
    }

    #[test]
    fn similarity_is_the_cosine_of_who_met_what() {
        // 1: users 1, 2, 3 · 2: users 1, 2 · 3: user 3 · 4: nobody
        let model = histories(4, &[(1, &[1, 2]), (2, &[1, 2]), (3, &[1, 3])]).build(0);
        let similar = model.similar(1, 10).expect("known");
        assert_eq!(ids(&similar), [2, 3]);
        assert!((similar[0].score - 2.0 / 6.0_f64.sqrt()).abs() < 1e-6);
        assert!((similar[1].score - 1.0 / 3.0_f64.sqrt()).abs() < 1e-6);
        assert_eq!(ids(&model.similar(4, 10).expect("known")), [0_i64; 0]);
        assert!(model.similar(5, 10).is_none());
        assert_eq!([1, 2, 3, 4, 5].map(|id| model.popularity(id)), [3, 2, 1, 0, 0]);
    }

    #[test]
    fn recommendations_are_neighbours_not_yet_met_then_what_trends() {
        let model =
            histories(4, &[(1, &[1, 2]), (2, &[1, 2]), (3, &[1, 3]), (4, &[4, 4, 4])]).build(0);
        let (list, personal) = model.recommend(&[2], 1);
        assert_eq!((ids(&list), personal), (vec![1], true));
        let (list, personal) = model.recommend(&[2], 10);
        assert_eq!((ids(&list), personal), (vec![1, 4, 3], false));
        let (list, personal) = model.recommend(&[], 2);
        assert_eq!((ids(&list), personal), (vec![1, 4], false));
        // Met twice, counted once; unknown entities say nothing.
        assert_eq!(model.recommend(&[2, 2, 99], 1), model.recommend(&[2], 1));
    }

    #[test]
    fn a_days_old_interaction_counts_half_for_what_trends() {
        let mut histories = histories(3, &[]);
        let day = 24 * 3_600 * 1_000;
        let row = |entity_id, kind, occurred_at_ms| StoredInteraction {
            user_id: 1,
            entity_id,
            kind,
            occurred_at_ms,
        };
        histories.add_interactions(&[(1, row(1, 1, 0)), (2, row(1, 1, day)), (3, row(2, 2, 0))]);
        // Out of order, as two processes may write.
        histories.add_interactions(&[(4, row(3, 1, day)), (5, row(3, 1, 0))]);
        let model = histories.build(day);
        let scores: Vec<(i64, f64)> =
            model.trending(9).iter().map(|listed| (listed.id, listed.score)).collect();
        assert_eq!(scores, [(1, 1.5), (2, 1.5), (3, 1.5)]);
        assert_eq!(model.coverage.interactions, 5);
    }

    #[test]
    fn a_users_history_and_the_number_of_users_are_bounded() {
        let many: Vec<i64> = (1..=100).collect();
        let mut histories = histories(100, &[(1, &many)]);
        assert_eq!(histories.users[&1].met.len(), USER_HISTORY);
        assert_eq!(histories.users[&1].met.last(), Some(&99), "the latest stays");
        histories.user_limit = 80;
        for user_id in 2..=200 {
            let row = StoredInteraction { user_id, entity_id: 1, kind: 1, occurred_at_ms: 0 };
            histories.add_interactions(&[(user_id, row)]);
        }
        assert!(histories.users.len() <= 90, "{}", histories.users.len());
        assert!(histories.users.contains_key(&200) && !histories.users.contains_key(&2));
    }

    #[test]
    fn at_most_so_many_neighbours_are_kept() {
        let all: Vec<i64> = (1..=30).collect();
        let model = histories(30, &[(1, &all)]).build(0);
        assert_eq!(model.similar(1, 100).expect("known").len(), NEIGHBOURS);
    }

    #[test]
    fn a_new_title_takes_the_place_of_the_old_one() {
        let mut histories = histories(2, &[(1, &[1, 2])]);
        let before = histories.build(0);
        histories.add_entities(&[(3, 2, "renamed".to_owned())]);
        let after = histories.build(0);
        assert_eq!(before.similar(1, 1).expect("known")[0].title, "title 2");
        assert_eq!(after.similar(1, 1).expect("known")[0].title, "renamed");
        assert_eq!((after.coverage.entities, after.coverage.entity_revision), (2, 3));
    }
}
