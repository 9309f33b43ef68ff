//! What is under way in a closed loop: at most `window` messages, each until all of its group have it and it is answered.

use std::sync::atomic::{AtomicU32, Ordering};

use tokio::sync::mpsc;

/// Places for messages that are under way.
#[derive(Debug)]
pub struct Flight {
    /// For each place, how many are still to tell of its message.
    left: Vec<AtomicU32>,
    free: mpsc::Sender<u32>,
}

impl Flight {
    /// The places, and where those that are free are taken from.
    pub fn new(window: u32) -> (Self, mpsc::Receiver<u32>) {
        let (free, taken) = mpsc::channel(window.max(1) as usize);
        for place in 0..window {
            free.try_send(place).expect("it has room for all places");
        }
        (Self { left: (0..window).map(|_| AtomicU32::new(0)).collect(), free }, taken)
    }

    /// A message leaves, of which this number are to tell.
    pub fn leave(&self, place: u32, tellers: u32) {
        self.left[place as usize].store(tellers, Ordering::Release);
    }

    /// One of them tells. A message without a place (of an open loop) is in no flight.
    pub fn tell(&self, place: u32) {
        let one_less = |left: u32| left.checked_sub(1);
        if let Some(left) = self.left.get(place as usize)
            && left.fetch_update(Ordering::AcqRel, Ordering::Acquire, one_less) == Ok(1)
        {
            // It has room for all; nobody takes places any more once the load is over.
            let _ = self.free.try_send(place);
        }
    }

    /// A message was refused: nobody else is to tell of it.
    pub fn abandon(&self, place: u32) {
        if let Some(left) = self.left.get(place as usize)
            && left.swap(0, Ordering::AcqRel) > 0
        {
            let _ = self.free.try_send(place);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_free_again_when_all_have_told() {
        let (flight, mut free) = Flight::new(2);
        assert_eq!((free.try_recv().ok(), free.try_recv().ok(), free.try_recv().ok()), (Some(0), Some(1), None));
        flight.leave(1, 2);
        flight.tell(1);
        flight.tell(7);
        assert!(free.try_recv().is_err());
        flight.tell(1);
        assert_eq!(free.try_recv().ok(), Some(1));
        flight.tell(1);
        flight.leave(0, 5);
        flight.abandon(0);
        flight.tell(0);
        assert_eq!((free.try_recv().ok(), free.try_recv().ok()), (Some(0), None));
    }
}
