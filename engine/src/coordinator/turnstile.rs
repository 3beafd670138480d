//! Fair entry to the replicas: no more requests are inside than the living replicas work on at once, and those who
//! wait are let in one per client in turn, so that a client with a thousand requests does not hold up one with one.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::oneshot;

/// Counts who is inside and queues who is not.
#[derive(Debug)]
pub(super) struct Turnstile {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    capacity: usize,
    inside: usize,
    /// Those who wait, by client, in order of arrival.
    queues: HashMap<u64, VecDeque<oneshot::Sender<Permit>>>,
    /// Clients with a queue, in the order of their turns.
    turns: VecDeque<u64>,
}

/// Leave to be inside; given back on drop.
#[derive(Debug)]
pub(super) struct Permit(Option<Arc<Turnstile>>);

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some(turnstile) = self.0.take() {
            turnstile.update(|state| state.inside -= 1);
        }
    }
}

impl Turnstile {
    /// A turnstile that lets in `capacity`.
    pub(super) fn new(capacity: usize) -> Arc<Self> {
        let (queues, turns) = (HashMap::new(), VecDeque::new());
        Arc::new(Self { state: Mutex::new(State { capacity, inside: 0, queues, turns }) })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the counts, then lets in whoever may come.
    fn update(self: &Arc<Self>, change: impl FnOnce(&mut State)) {
        let mut state = self.lock();
        change(&mut state);
        while state.inside < state.capacity {
            let Some(waiting) = state.next() else { break };
            state.inside += 1;
            if let Err(mut permit) = waiting.send(Permit(Some(self.clone()))) {
                // It has given up waiting. The permit must not come back through the lock that is held here.
                permit.0 = None;
                state.inside -= 1;
            }
        }
    }

    /// Living replicas work on `capacity` requests now. Those inside stay.
    pub(super) fn set_capacity(self: &Arc<Self>, capacity: usize) {
        self.update(|state| state.capacity = capacity);
    }

    /// Waits for its turn. Giving up is safe at any time.
    pub(super) async fn enter(self: &Arc<Self>, client: u64) -> Permit {
        let (send, receive) = oneshot::channel();
        self.update(|state| {
            let queue = state.queues.entry(client).or_default();
            if queue.is_empty() {
                state.turns.push_back(client);
            }
            queue.push_back(send);
        });
        // The sender is dropped unused only together with the turnstile.
        receive.await.unwrap_or(Permit(None))
    }

    /// Those inside and those who wait.
    pub(super) fn counts(&self) -> (usize, usize) {
        let state = self.lock();
        (state.inside, state.queues.values().map(VecDeque::len).sum())
    }
}

impl State {
    /// Takes the first of the client whose turn it is.
    fn next(&mut self) -> Option<oneshot::Sender<Permit>> {
        let client = self.turns.pop_front()?;
        let queue = self.queues.get_mut(&client)?;
        let first = queue.pop_front();
        if queue.is_empty() {
            self.queues.remove(&client);
        } else {
            self.turns.push_back(client);
        }
        first
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::Future;
    use std::pin::{Pin, pin};
    use std::task::{Context, Poll, Waker};

    fn poll<F: Future>(future: Pin<&mut F>) -> Poll<F::Output> {
        future.poll(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn clients_take_turns_and_leavers_make_room() {
        let turnstile = Turnstile::new(1);
        let Poll::Ready(inside) = poll(pin!(turnstile.enter(0))) else { panic!("there is room") };
        let (mut a1, mut a2) = (Box::pin(turnstile.enter(1)), Box::pin(turnstile.enter(1)));
        assert!(poll(a1.as_mut()).is_pending() && poll(a2.as_mut()).is_pending());
        let mut b1 = Box::pin(turnstile.enter(2));
        assert!(poll(b1.as_mut()).is_pending());
        assert_eq!(turnstile.counts(), (1, 3));
        drop(inside);
        let Poll::Ready(first) = poll(a1.as_mut()) else { panic!("first come") };
        drop(first);
        assert!(poll(a2.as_mut()).is_pending(), "client 2 has its turn before client 1's second");
        let Poll::Ready(second) = poll(b1.as_mut()) else { panic!("its turn") };
        drop(a2);
        drop(second);
        assert_eq!(turnstile.counts(), (0, 0), "who gave up takes no room");
    }

    #[test]
    fn a_permit_that_nobody_fetched_comes_back() {
        let turnstile = Turnstile::new(0);
        let mut waiting = Box::pin(turnstile.enter(1));
        assert!(poll(waiting.as_mut()).is_pending());
        turnstile.set_capacity(1);
        assert_eq!(turnstile.counts(), (1, 0));
        drop(waiting);
        assert_eq!(turnstile.counts(), (0, 0));
    }
}
