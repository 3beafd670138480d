//! The coordinator's life cycle: the table of [`EngineState`], obeyed by all replicas at once.
//!
//! Every verb is acknowledged: it returns when all living replicas have obeyed. One that is illegal, or comes while
//! another is being obeyed, is refused at once. A replica that does not follow is given up, its requests move on.

use super::link::ReplicaLink;
use super::service::{DataParallelInferenceCoordinator, Inner};
use crate::error::{EngineError, Result};
use crate::step::plan::Executor;
use crate::step::service::{EngineState, Verb};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// A verb that is being obeyed. However it ends, others may come afterwards.
struct Change<'a> {
    inner: &'a Inner,
    next: EngineState,
}

impl<'a> Change<'a> {
    /// Refuses what is illegal.
    fn begin(inner: &'a Inner, verb: Verb) -> Result<Self> {
        let mut life = inner.life();
        if let Some(changing) = life.changing {
            return Err(EngineError::Lifecycle {
                verb: verb.name(),
                state: format!("{}: `{}` is being obeyed", life.state.name(), changing.name()),
                hint: "wait until it has returned".to_owned(),
            });
        }
        let next = life.state.after(verb).ok_or_else(|| life.state.refusal(verb, None))?;
        life.changing = Some(verb);
        Ok(Self { inner, next })
    }

    /// The verb was obeyed.
    fn done(self) {
        let mut life = self.inner.life();
        // A stop that came in between is final.
        if life.state != EngineState::Stopped {
            life.state = self.next;
        }
    }
}

impl Drop for Change<'_> {
    fn drop(&mut self) {
        self.inner.life().changing = None;
    }
}

impl Inner {
    /// Has every one of `links` do the same, side by side: ranks that share experts have to.
    fn everywhere(
        links: &[(usize, Arc<dyn ReplicaLink>)],
        act: impl Fn(usize, &dyn ReplicaLink) -> Result<()> + Sync,
    ) -> Vec<(usize, Result<()>)> {
        std::thread::scope(|scope| {
            let act = &act;
            let threads: Vec<_> =
                links.iter().map(|(index, link)| (*index, scope.spawn(|| act(*index, &**link)))).collect();
            let ended = |(index, thread): (usize, std::thread::ScopedJoinHandle<'_, Result<()>>)| {
                (index, thread.join().unwrap_or_else(|_| Err(EngineError::internal("a link panicked"))))
            };
            threads.into_iter().map(ended).collect()
        })
    }

    /// Gives up those who did not obey. An error when nobody did.
    fn judge(&self, verb: Verb, results: Vec<(usize, Result<()>)>) -> Result<()> {
        let obeyed = results.iter().filter(|(_, result)| result.is_ok()).count();
        let mut first = None;
        for (index, result) in results {
            let Err(error) = result else { continue };
            if obeyed > 0 {
                self.fleet.expel(index, format!("did not obey `{}`: {error}", verb.name()));
            }
            first.get_or_insert(error);
        }
        self.refresh();
        let nobody = || EngineError::Lifecycle {
            verb: verb.name(),
            state: "without a living replica".to_owned(),
            hint: "let a replica rejoin, or reset".to_owned(),
        };
        if obeyed > 0 { Ok(()) } else { Err(first.unwrap_or_else(nobody)) }
    }

    /// Ends all requests in flight.
    fn end_era(&self, reason: &'static str) {
        self.era.send_modify(|era| (era.number, era.reason) = (era.number + 1, reason));
    }
}

impl DataParallelInferenceCoordinator {
    /// Stops stepping everywhere after the steps under way. Requests stay where they are; new ones are taken.
    ///
    /// # Errors
    /// [`EngineError::Lifecycle`] when it is illegal, at once; whatever stops every replica from obeying.
    pub fn pause(&self) -> Result<()> {
        self.plain(Verb::Pause)
    }

    /// Steps again.
    ///
    /// # Errors
    /// As [`DataParallelInferenceCoordinator::pause`].
    pub fn unpause(&self) -> Result<()> {
        self.plain(Verb::Unpause)
    }

    /// Puts the KV storage of all replicas away, as `kv_cache_management_mode` says.
    ///
    /// # Errors
    /// As [`DataParallelInferenceCoordinator::pause`].
    pub fn suspend(&self) -> Result<()> {
        self.plain(Verb::Suspend)
    }

    /// Brings the KV storage back; everything is paused then.
    ///
    /// # Errors
    /// As [`DataParallelInferenceCoordinator::pause`].
    pub fn resume(&self) -> Result<()> {
        self.plain(Verb::Resume)
    }

    fn plain(&self, verb: Verb) -> Result<()> {
        let change = Change::begin(&self.inner, verb)?;
        let results = Inner::everywhere(&self.inner.fleet.links(false), |_, link| link.change(verb));
        self.inner.judge(verb, results)?;
        change.done();
        Ok(())
    }

    /// Ends all requests in flight as cancelled and starts afresh; replicas that failed and can be mended are back.
    ///
    /// # Errors
    /// As [`DataParallelInferenceCoordinator::pause`].
    pub fn reset(&self) -> Result<()> {
        let change = Change::begin(&self.inner, Verb::Reset)?;
        self.inner.end_era("the coordinator was reset");
        self.inner.gauge.drained(self.inner.config.drain_deadline);
        let (living, all) = (self.inner.fleet.links(false), self.inner.fleet.links(true));
        let results = Inner::everywhere(&all, |_, link| link.change(Verb::Reset));
        let of_the_living = |(index, _): &(usize, Result<()>)| living.iter().any(|(alive, _)| alive == index);
        let (judged, mended): (Vec<_>, Vec<_>) = results.into_iter().partition(of_the_living);
        if mended.iter().any(|(_, result)| result.is_ok()) {
            self.inner.fleet.revive_all();
        }
        self.inner.fleet.clear_prefixes();
        if judged.is_empty() && mended.iter().any(|(_, result)| result.is_ok()) {
            self.inner.refresh();
        } else {
            self.inner.judge(Verb::Reset, judged)?;
        }
        change.done();
        Ok(())
    }

    /// Replaces the weights of all suspended replicas. Requests in flight go on with the new ones; every later answer
    /// carries `version`. A replica that does not take them is given up: it has other weights than the rest.
    ///
    /// # Errors
    /// As [`DataParallelInferenceCoordinator::pause`]; what `make` refuses, before anything was changed.
    pub fn update_weights(
        &self,
        version: u64,
        mut make: impl FnMut(usize) -> Result<Box<dyn Executor>>,
    ) -> Result<()> {
        let change = Change::begin(&self.inner, Verb::UpdateWeights)?;
        let links = self.inner.fleet.links(false);
        let executors = links.iter().map(|(index, _)| make(*index)).collect::<Result<Vec<_>>>()?;
        let given =
            Mutex::new(links.iter().map(|(index, _)| *index).zip(executors).collect::<BTreeMap<_, _>>());
        let results = Inner::everywhere(&links, |index, link| {
            let executor = given.lock().unwrap_or_else(PoisonError::into_inner).remove(&index);
            let lost = || EngineError::internal("the new weights of a replica were lost");
            link.update_weights(executor.ok_or_else(lost)?, version)
        });
        self.inner.judge(Verb::UpdateWeights, results)?;
        self.inner.fleet.clear_prefixes();
        self.inner.life().weight_version = version;
        change.done();
        Ok(())
    }

    /// Returns once it was stopped, by whomever. Bound to no runtime.
    pub async fn stopped(&self) {
        // Subscribed before the state is looked at, which changes before the era does.
        let mut era = self.inner.era.subscribe();
        while self.state() != EngineState::Stopped && era.changed().await.is_ok() {}
    }

    /// Answers every request in flight as cancelled and stops all replicas. Legal always, and again.
    ///
    /// # Errors
    /// A replica that did not stop within its link's deadline.
    pub fn stop(&self) -> Result<()> {
        {
            let mut life = self.inner.life();
            if life.state == EngineState::Stopped {
                return Ok(());
            }
            life.state = EngineState::Stopped;
        }
        self.inner.end_era("the coordinator was stopped");
        let drained = self.inner.gauge.drained(self.inner.config.drain_deadline);
        let results = Inner::everywhere(&self.inner.fleet.links(true), |_, link| link.change(Verb::Stop));
        let first = results.into_iter().find_map(|(_, result)| result.err());
        match first {
            Some(error) => Err(error),
            None if drained => Ok(()),
            None => Err(EngineError::internal("requests were still in flight at the deadline of stop")),
        }
    }
}
