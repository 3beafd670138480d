//! A layout as text: what a matrix and an id say. Rank arithmetic is the engine's business.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// Sizes of the four kinds of parallelism, `tp=2,pp=2`. Sizes of one may be left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Layout {
    /// Tensor parallelism.
    pub tp: usize,
    /// Pipeline parallelism.
    pub pp: usize,
    /// Data parallelism.
    pub dp: usize,
    /// Expert parallelism; folded into tp x dp, as in Megatron.
    pub ep: usize,
}

impl Layout {
    /// One rank.
    pub const SINGLE: Self = Self { tp: 1, pp: 1, dp: 1, ep: 1 };

    /// The sizes by name, in the order in which they are written.
    const fn sizes(self) -> [(&'static str, usize); 4] {
        [("tp", self.tp), ("pp", self.pp), ("dp", self.dp), ("ep", self.ep)]
    }

    /// `tp2-pp2`, for ids: sizes of one are left out, a single rank is `tp1`.
    pub fn slug(self) -> String {
        self.joined("", "-", false)
    }

    /// All four sizes, `tp=2,pp=2,dp=1,ep=1`.
    pub fn full(self) -> String {
        self.joined("=", ",", true)
    }

    /// Names and sizes, joined.
    fn joined(self, equals: &str, comma: &str, all: bool) -> String {
        let shown = self.sizes().into_iter().filter(|(_, size)| all || *size != 1);
        let parts: Vec<String> = shown.map(|(name, size)| format!("{name}{equals}{size}")).collect();
        if parts.is_empty() { format!("tp{equals}1") } else { parts.join(comma) }
    }
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.joined("=", ",", false))
    }
}

impl FromStr for Layout {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut layout = Self::SINGLE;
        let mut seen = Vec::new();
        for part in text.split(',') {
            let wrong = || format!("`{part}` in layout `{text}` is not one of tp=N, pp=N, dp=N, ep=N");
            let (name, size) = part.trim().split_once('=').ok_or_else(wrong)?;
            let size: usize = size.parse().map_err(|_| wrong())?;
            if size == 0 || size > 4096 {
                return Err(format!("`{part}` in layout `{text}`: sizes go from 1 to 4096"));
            }
            if seen.contains(&name) {
                return Err(format!("`{name}` appears twice in layout `{text}`"));
            }
            seen.push(name);
            match name {
                "tp" => layout.tp = size,
                "pp" => layout.pp = size,
                "dp" => layout.dp = size,
                "ep" => layout.ep = size,
                _ => return Err(wrong()),
            }
        }
        Ok(layout)
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
        assert_eq!(layout.full(), "tp=4,pp=2,dp=1,ep=1");
        assert_eq!((Layout::SINGLE.to_string(), Layout::SINGLE.slug()), ("tp=1".into(), "tp1".into()));
        assert_eq!("ep=8".parse::<Layout>().unwrap().slug(), "ep8");
        for wrong in ["", "tp", "tp=0", "tp=x", "cp=2", "tp=2,tp=2", "tp=5000"] {
            assert!(wrong.parse::<Layout>().is_err(), "{wrong}");
        }
    }
}
