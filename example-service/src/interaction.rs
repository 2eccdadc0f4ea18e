//! What users did.

use serde::{Deserialize, Serialize};

use crate::extract::Item;

/// What a user did with an entity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum InteractionKind {
    View,
    Like,
    Purchase,
}

impl InteractionKind {
    /// As it is stored.
    pub(crate) fn code(self) -> i64 {
        match self {
            Self::View => 1,
            Self::Like => 2,
            Self::Purchase => 3,
        }
    }

    /// How much it counts for what is trending, given what is stored.
    pub(crate) fn weight(code: i64) -> f64 {
        match code {
            2 => 3.0,
            3 => 5.0,
            _ => 1.0,
        }
    }
}

/// One user did one thing with one entity. The service notes when.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Interaction {
    /// 1 or more.
    pub(crate) user_id: i64,
    /// Of an entity that exists.
    pub(crate) entity_id: i64,
    pub(crate) kind: InteractionKind,
}

impl Item for Interaction {
    fn check(&self, mut fault: impl FnMut(&'static str, String)) {
        for (field, id) in [("user_id", self.user_id), ("entity_id", self.entity_id)] {
            if id < 1 {
                fault(field, format!("{id} is not 1 or more"));
            }
        }
    }
}

/// An interaction as the model reads it back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StoredInteraction {
    pub(crate) user_id: i64,
    pub(crate) entity_id: i64,
    pub(crate) kind: i64,
    pub(crate) occurred_at_ms: i64,
}
