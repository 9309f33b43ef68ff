//! Equal values have equal numbers.

use std::{
    collections::HashMap,
    hash::{BuildHasherDefault, Hasher},
    rc::Rc,
};

/// A map from numbers, which nobody chose to collide.
pub(super) type Numbers<K, V> = HashMap<K, V, BuildHasherDefault<Mix>>;

/// Mixes numbers, eight bytes at a time.
#[derive(Clone, Default, Debug)]
pub(super) struct Mix(u64);

impl Hasher for Mix {
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.0 = (self.0.rotate_left(26) ^ u64::from_le_bytes(word)).wrapping_mul(0xf135_7aea_2e62_a9c5);
        }
    }

    fn finish(&self) -> u64 {
        self.0 ^ (self.0 >> 32)
    }
}

/// Values by number, told apart by what they print.
#[derive(Debug)]
pub(super) struct Table<T> {
    numbers: HashMap<String, u32>,
    values: Vec<Rc<T>>,
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self { numbers: HashMap::new(), values: Vec::new() }
    }
}

impl<T> Table<T> {
    /// The number of the value that prints so.
    pub(super) fn number(&mut self, printed: String, value: impl FnOnce() -> T) -> u32 {
        *self.numbers.entry(printed).or_insert_with(|| {
            self.values.push(Rc::new(value()));
            self.values.len() as u32 - 1
        })
    }

    pub(super) fn get(&self, number: u32) -> &Rc<T> {
        &self.values[number as usize]
    }

    pub(super) fn len(&self) -> usize {
        self.values.len()
    }
}

/// Lists of numbers, by number. The list without elements has the number 0.
#[derive(Debug)]
pub(super) struct Lists {
    numbers: Numbers<Rc<[u32]>, u32>,
    values: Vec<Rc<[u32]>>,
    grown: Numbers<(u32, u32), u32>,
}

impl Lists {
    pub(super) fn new() -> Self {
        let mut new = Self { numbers: Numbers::default(), values: Vec::new(), grown: Numbers::default() };
        new.number(&[]);
        new
    }

    pub(super) fn get(&self, number: u32) -> &Rc<[u32]> {
        &self.values[number as usize]
    }

    pub(super) fn number(&mut self, list: &[u32]) -> u32 {
        if let Some(number) = self.numbers.get(list) {
            return *number;
        }
        let (number, list) = (self.values.len() as u32, Rc::<[u32]>::from(list));
        self.values.push(list.clone());
        self.numbers.insert(list, number);
        number
    }

    /// The same list with one more at its end.
    pub(super) fn pushed(&mut self, number: u32, element: u32) -> u32 {
        let list: Vec<u32> = self.get(number).iter().copied().chain([element]).collect();
        self.number(&list)
    }

    /// The same list with this element in its place, where the list is sorted and has each element once.
    pub(super) fn inserted(&mut self, number: u32, element: u32) -> u32 {
        if let Some(grown) = self.grown.get(&(number, element)) {
            return *grown;
        }
        let list = self.get(number).clone();
        let grown = match list.binary_search(&element) {
            Ok(_) => number,
            Err(at) => {
                let list: Vec<u32> =
                    list[..at].iter().copied().chain([element]).chain(list[at..].iter().copied()).collect();
                self.number(&list)
            }
        };
        self.grown.insert((number, element), grown);
        grown
    }
}
