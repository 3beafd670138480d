//! A layout as matrices and ids write it. What ranks it has is the engine's business.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// Sizes of the parallel axes, `tp=2,pp=2`. Sizes of one are left out when it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Layout(pub engine::parallel::layout::Layout);

impl Layout {
    /// One rank.
    pub const SINGLE: Self = Self(engine::parallel::layout::Layout::SINGLE);

    /// Number of ranks.
    pub const fn ranks(self) -> usize {
        self.0.world()
    }

    /// Number of data-parallel replicas.
    pub const fn replicas(self) -> usize {
        self.0.dp()
    }

    /// `tp2-pp2`, for ids: sizes of one are left out, a single rank is `tp1`.
    pub fn slug(self) -> String {
        self.to_string().replace('=', "").replace(',', "-")
    }

    /// Every size, `tp=2,pp=2,dp=1,ep=1`.
    pub fn full(self) -> String {
        self.0.to_string()
    }
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let full = self.full();
        let parts: Vec<&str> =
            full.split(',').filter(|part| !part.ends_with("=1") || part.starts_with("etp")).collect();
        f.pad(&if parts.is_empty() { "tp=1".to_owned() } else { parts.join(",") })
    }
}

impl FromStr for Layout {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = |error: engine::EngineError| {
            let hint = error.hint().map(|hint| format!(" ({hint})")).unwrap_or_default();
            format!("{error}{hint}")
        };
        text.parse().map(Self).map_err(wrong)
    }
}

impl TryFrom<String> for Layout {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Layout> for String {
    fn from(layout: Layout) -> Self {
        layout.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_forms() {
        let layout: Layout = "pp=2,tp=4".parse().unwrap();
        assert_eq!((layout.to_string(), layout.slug()), ("tp=4,pp=2".into(), "tp4-pp2".into()));
        assert_eq!((layout.full(), layout.ranks()), ("tp=4,pp=2,dp=1,ep=1".into(), 8));
        assert_eq!((Layout::SINGLE.to_string(), Layout::SINGLE.slug()), ("tp=1".into(), "tp1".into()));
        assert_eq!("ep=8".parse::<Layout>().unwrap().slug(), "ep8");
        for text in ["tp=2,dp=2,ep=4,etp=1", "tp=4,ep=2", "dp=3"] {
            let layout: Layout = text.parse().unwrap();
            assert_eq!(
                layout.to_string().parse::<Layout>().unwrap(),
                layout,
                "{text}: written form reads back"
            );
        }
        for wrong in ["", "tp", "tp=0", "tp=x", "cp=2", "tp=2,tp=2"] {
            assert!(wrong.parse::<Layout>().is_err(), "{wrong}");
        }
    }
}
