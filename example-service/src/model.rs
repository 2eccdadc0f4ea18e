//! What is recommended to whom: item-based collaborative filtering, and what is trending.
//!
//! Two entities are as similar as the users who met both are many, against those who met either: the
//! cosine of their columns in the user × entity matrix. A model never changes; a new one takes its place.

mod history;

use std::{
    collections::hash_map::Entry,
    sync::Arc,
    time::{Duration, SystemTime},
};

use rustc_hash::{FxHashMap, FxHashSet};

pub(crate) use self::history::{Histories, USER_HISTORY};
use crate::entity::{Listed, Title};

/// Neighbours that are kept of an entity.
pub(crate) const NEIGHBOURS: usize = 20;
/// Entities that are kept as trending.
pub(crate) const TRENDING: usize = 200;

/// A place in a [`Catalogue`].
type Index = u32;

/// The entities that a model speaks of. A model and its successor share it where no entity was written.
#[derive(Clone, Debug, Default)]
struct Catalogue {
    ids: Vec<i64>,
    titles: Vec<Title>,
    index: FxHashMap<i64, Index>,
}

/// Answers from everything stored up to a point.
#[derive(Debug)]
pub(crate) struct Model {
    catalogue: Arc<Catalogue>,
    neighbours: Neighbours,
    /// Best first.
    trending: Vec<(Index, f64)>,
    /// Users that met an entity, of those that are kept.
    met_by: Vec<u32>,
    pub(crate) coverage: Coverage,
}

/// Up to which point a model knows what is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Coverage {
    /// One more than of the model before.
    pub(crate) generation: u64,
    pub(crate) refreshed_at: SystemTime,
    /// How long it took to read what was new and to build.
    pub(crate) took: Duration,
    pub(crate) entities: usize,
    /// Last revision of an entity.
    pub(crate) entity_revision: i64,
    /// Interactions so far: their ids have no gaps.
    pub(crate) interactions: i64,
}

/// The neighbours of all entities, one after the other.
#[derive(Debug, Default)]
struct Neighbours {
    flat: Vec<(Index, f32)>,
    /// Where the neighbours of an entity end; they start where those of the one before end.
    ends: Vec<u32>,
}

impl Neighbours {
    /// Most similar first.
    fn of(&self, entity: Index) -> &[(Index, f32)] {
        let entity = entity as usize;
        let start = entity.checked_sub(1).map_or(0, |before| self.ends[before] as usize);
        &self.flat[start..self.ends[entity] as usize]
    }
}

impl Model {
    /// A model of nothing.
    pub(crate) fn empty() -> Self {
        Self {
            catalogue: Arc::default(),
            neighbours: Neighbours::default(),
            trending: Vec::new(),
            met_by: Vec::new(),
            coverage: Coverage {
                generation: 0,
                refreshed_at: SystemTime::now(),
                took: Duration::ZERO,
                entities: 0,
                entity_revision: 0,
                interactions: 0,
            },
        }
    }

    /// What users met who met this one; `None` if the model does not know it.
    pub(crate) fn similar(&self, id: i64, limit: usize) -> Option<Vec<Listed<'_>>> {
        let index = *self.catalogue.index.get(&id)?;
        let neighbours = self.neighbours.of(index).iter().take(limit);
        Some(neighbours.map(|&(index, score)| self.listed(index, f64::from(score))).collect())
    }

    /// What was met most of late.
    pub(crate) fn trending(&self, limit: usize) -> Vec<Listed<'_>> {
        self.trending.iter().take(limit).map(|&(index, score)| self.listed(index, score)).collect()
    }

    /// What a user may like who met `recent`, the latest first: the neighbours of those, without them.
    /// `true` beside it where all of it comes from there, `false` where what is trending fills it up.
    pub(crate) fn recommend(&self, recent: &[i64], limit: usize) -> (Vec<Listed<'_>>, bool) {
        let seen: FxHashSet<Index> =
            recent.iter().filter_map(|id| self.catalogue.index.get(id).copied()).collect();
        let mut scores: FxHashMap<Index, f64> = FxHashMap::default();
        let mut counted = FxHashSet::default();
        let mut weight = 1.0;
        for id in recent {
            let Some(&index) = self.catalogue.index.get(id) else { continue };
            if !counted.insert(index) {
                continue;
            }
            for &(neighbour, similarity) in self.neighbours.of(index) {
                if !seen.contains(&neighbour) {
                    *scores.entry(neighbour).or_default() += weight * f64::from(similarity);
                }
            }
            // What was met long ago says less.
            weight *= 0.95;
        }
        let mut best: Vec<(Index, f64)> = scores.into_iter().collect();
        history::keep_best(&mut best, limit);
        let personal = best.len() >= limit;
        if !personal {
            let chosen: FxHashSet<Index> = best.iter().map(|&(index, _)| index).collect();
            let rest = self
                .trending
                .iter()
                .filter(|(index, _)| !chosen.contains(index) && !seen.contains(index));
            // After all that is personal, whatever the two scales.
            best.extend(rest.take(limit - best.len()).map(|&(index, _)| (index, 0.0)));
        }
        (best.into_iter().map(|(index, score)| self.listed(index, score)).collect(), personal)
    }

    /// How many users met an entity: what puts search results in order.
    pub(crate) fn popularity(&self, id: i64) -> u32 {
        let index = self.catalogue.index.get(&id);
        index.and_then(|&index| self.met_by.get(index as usize)).copied().unwrap_or_default()
    }

    fn listed(&self, index: Index, score: f64) -> Listed<'_> {
        let place = index as usize;
        Listed {
            id: self.catalogue.ids[place],
            title: (&*self.catalogue.titles[place]).into(),
            score,
        }
    }
}

impl Catalogue {
    /// Adds an entity, or gives it its new title.
    fn put(&mut self, id: i64, title: &str) {
        match self.index.entry(id) {
            Entry::Occupied(entry) => self.titles[*entry.get() as usize] = title.into(),
            Entry::Vacant(entry) => {
                let Ok(index) = Index::try_from(self.ids.len()) else { return };
                entry.insert(index);
                self.ids.push(id);
                self.titles.push(title.into());
            }
        }
    }
}
