//! Which model an answer is of: the cards of all weights that a façade has served, by weight version.

use crate::output::ModelCard;
use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

/// Most versions remembered; requests do not outlive so many updates.
const MOST: usize = 64;

/// The cards, newest last. Never empty.
pub(crate) struct Cards {
    by_version: RwLock<BTreeMap<u64, Arc<ModelCard>>>,
    first: Arc<ModelCard>,
}

impl Cards {
    /// Weights of version 0.
    pub fn new(card: ModelCard) -> Self {
        let first = Arc::new(card);
        Self { by_version: RwLock::new(BTreeMap::from([(0, Arc::clone(&first))])), first }
    }

    /// From `version` on, answers are of `card`.
    pub fn update(&self, version: u64, card: ModelCard) {
        let mut cards = self.by_version.write().unwrap_or_else(PoisonError::into_inner);
        cards.insert(version, Arc::new(card));
        while cards.len() > MOST {
            cards.pop_first();
        }
    }

    /// The card of the weights of `version`: the newest that is not newer.
    pub fn at(&self, version: u64) -> Arc<ModelCard> {
        let cards = self.by_version.read().unwrap_or_else(PoisonError::into_inner);
        let card = cards.range(..=version).next_back().or_else(|| cards.first_key_value());
        card.map_or_else(|| Arc::clone(&self.first), |(_, card)| Arc::clone(card))
    }

    /// The card of the present weights.
    pub fn present(&self) -> Arc<ModelCard> {
        self.at(u64::MAX)
    }
}
