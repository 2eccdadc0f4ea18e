//! The generator: from a seed to entities and interactions.

use rand::{RngExt, SeedableRng, rngs::ChaCha8Rng};
use rand_distr::{Distribution, Zipf};

use super::SeedPlan;
use crate::{
    entity::Entity,
    interaction::{Interaction, InteractionKind},
};

const ADJECTIVES: [&str; 24] = [
    "amber", "bitter", "bright", "calm", "classic", "crisp", "dark", "early", "fresh", "gentle",
    "golden", "green", "late", "light", "mild", "misty", "plain", "quiet", "rare", "smoked",
    "spiced", "sweet", "warm", "wild",
];
const PLACES: [&str; 24] = [
    "alpine", "baltic", "coastal", "desert", "eastern", "forest", "garden", "harbour", "highland",
    "island", "lakeside", "meadow", "mountain", "northern", "orchard", "prairie", "river",
    "southern", "steppe", "summit", "tropical", "valley", "village", "western",
];
const THINGS: [&str; 32] = [
    "almond", "apple", "barley", "basil", "bread", "butter", "cedar", "cheese", "cherry", "cider",
    "cocoa", "coffee", "fennel", "ginger", "grape", "hazelnut", "honey", "juniper", "lemon",
    "maple", "mint", "nettle", "olive", "orange", "pear", "pepper", "plum", "rice", "saffron",
    "tea", "thyme", "walnut",
];
const CATEGORIES: [&str; 16] = [
    "bakery",
    "books",
    "breakfast",
    "camping",
    "cooking",
    "dairy",
    "drinks",
    "fruit",
    "gifts",
    "grains",
    "herbs",
    "kitchen",
    "pantry",
    "snacks",
    "spices",
    "sweets",
];
/// How steeply popularity falls: with 1, the tenth has a tenth of the first's.
const ZIPF_EXPONENT: f64 = 1.0;
/// How often users stay with their own category, so that what they do has a pattern to be found.
const LOYALTY: f64 = 0.6;

/// Makes the data of a plan, item by item.
///
/// The generator of random numbers is named, not "the standard one", so that a seed keeps its meaning.
#[derive(Debug)]
pub(super) struct Generator {
    rng: ChaCha8Rng,
    popularity: Zipf<f64>,
    entities: u64,
    users: u64,
    next_entity: u64,
}

impl Generator {
    #[expect(clippy::cast_precision_loss, reason = "a plan has at most 100 million entities")]
    pub(super) fn new(plan: &SeedPlan) -> Self {
        Self {
            rng: ChaCha8Rng::seed_from_u64(plan.seed),
            popularity: Zipf::new(plan.entities as f64, ZIPF_EXPONENT)
                .expect("a plan has at least one entity, and the exponent is positive"),
            entities: plan.entities,
            users: plan.users,
            next_entity: 1,
        }
    }

    /// The next entity; ids count from 1.
    pub(super) fn entity(&mut self) -> Entity {
        let id = self.next_entity;
        self.next_entity += 1;
        let mut word = |words: &[&'static str]| words[self.rng.random_range(0..words.len())];
        let title = format!("{} {} {} {id}", word(&ADJECTIVES), word(&PLACES), word(&THINGS));
        let category = CATEGORIES[category(id)].to_owned();
        Entity { id: number(id), title, category }
    }

    /// The next interaction.
    pub(super) fn interaction(&mut self) -> Interaction {
        let user = self.rng.random_range(1..=self.users);
        let mut entity = self.popular_entity();
        if self.rng.random_bool(LOYALTY) {
            // The nearest one in popularity of the user's own category.
            let categories = CATEGORIES.len() as u64;
            entity = (entity - 1) / categories * categories + 1 + user % categories;
            entity = entity.min(self.entities);
        }
        let kind = match self.rng.random_range(0..10) {
            0..7 => InteractionKind::View,
            7..9 => InteractionKind::Like,
            _ => InteractionKind::Purchase,
        };
        Interaction { user_id: number(user), entity_id: number(entity), kind }
    }

    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a rank is a whole number from 1 to the number of entities"
    )]
    fn popular_entity(&mut self) -> u64 {
        (self.popularity.sample(&mut self.rng) as u64).clamp(1, self.entities)
    }
}

fn category(entity: u64) -> usize {
    usize::try_from((entity - 1) % CATEGORIES.len() as u64).unwrap_or_default()
}

/// Ids are within a plan's limit.
fn number(id: u64) -> i64 {
    i64::try_from(id).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::extract::Item;

    fn generated(seed: u64) -> (Vec<Entity>, Vec<Interaction>) {
        let plan = SeedPlan::with_sizes(1_000, 20_000, 500, seed).expect("a valid plan");
        let mut generator = Generator::new(&plan);
        let entities = (0..plan.entities).map(|_| generator.entity()).collect();
        (entities, (0..plan.interactions).map(|_| generator.interaction()).collect())
    }

    #[test]
    fn the_same_seed_makes_the_same_data_and_another_seed_other_data() {
        assert_eq!(generated(7), generated(7));
        assert_ne!(generated(7), generated(8));
    }

    #[test]
    fn a_seed_keeps_its_meaning() {
        let (entities, interactions) = generated(1);
        let first = &interactions[0];
        assert_eq!(entities[0].title, "light island walnut 1");
        assert_eq!(
            (first.user_id, first.entity_id, first.kind),
            (383, 1, InteractionKind::Purchase)
        );
    }

    #[test]
    fn everything_generated_is_acceptable_and_within_the_plan() {
        let (entities, interactions) = generated(3);
        assert!((1..).zip(&entities).all(|(id, entity)| entity.id == id));
        for entity in &entities {
            entity.check(|field, detail| panic!("{field}: {detail}"));
        }
        for interaction in &interactions {
            assert!((1..=500).contains(&interaction.user_id), "{interaction:?}");
            assert!((1..=1_000).contains(&interaction.entity_id), "{interaction:?}");
        }
    }

    #[test]
    fn few_entities_get_most_of_the_interactions() {
        let (_, interactions) = generated(5);
        let top = interactions.iter().filter(|interaction| interaction.entity_id <= 100).count();
        // Zipf with exponent 1: the first 100 of 1,000 get H(100)/H(1000) = 69 %; staying within
        // blocks of 16 moves that by little.
        let share = top as f64 / interactions.len() as f64;
        assert!((0.6..0.8).contains(&share), "{share}");
    }
}
