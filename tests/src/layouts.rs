//! The layouts that must give the bits of one rank: everything up to eight ranks that the models can be cut into.

use engine::model::spec::ModelSpec;
use engine::parallel::layout::Layout;

/// Sizes of each axis.
const TP: [usize; 6] = [1, 2, 3, 4, 5, 8];
const PP: [usize; 4] = [1, 2, 3, 4];
const DP: [usize; 4] = [1, 2, 4, 8];
const EP: [usize; 5] = [1, 2, 3, 4, 8];

/// All layouts of these sizes that have at most `world` ranks and fit the model.
pub fn all(spec: &ModelSpec, world: usize) -> Vec<Layout> {
    let mut found = Vec::new();
    for tp in TP {
        for pp in PP {
            for dp in DP {
                for ep in EP {
                    let Ok(layout) = Layout::new(tp, pp, dp, ep) else { continue };
                    if layout.world() <= world && layout.validate(spec).is_ok() {
                        found.push(layout);
                    }
                }
            }
        }
    }
    found
}
