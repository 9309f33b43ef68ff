//! A list that nearly always has one element, which it then holds without memory of its own. On the way of a broadcast a
//! message is mostly alone: a list of one would be most of what it costs the allocator.

use std::{
    fmt,
    iter::Chain,
    marker::PhantomData,
    ops::{Deref, DerefMut},
    option, slice, vec,
};

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{SeqAccess, Visitor},
};

/// At most this number of elements are given room by the word of who sent them.
const ROOM_BY_WORD: usize = 1_024;

/// A list. It travels as a `Vec` does.
#[derive(Clone)]
pub struct Few<T>(Inner<T>);

#[derive(Clone)]
enum Inner<T> {
    One(T),
    List(Vec<T>),
}

impl<T> Few<T> {
    /// A list of one.
    pub fn one(element: T) -> Self {
        Self(Inner::One(element))
    }

    /// Adds an element at the end.
    pub fn push(&mut self, element: T) {
        self.0 = match std::mem::replace(&mut self.0, Inner::List(Vec::new())) {
            Inner::One(first) => Inner::List(vec![first, element]),
            Inner::List(list) if list.is_empty() => Inner::One(element),
            Inner::List(mut list) => {
                list.push(element);
                Inner::List(list)
            }
        };
    }
}

impl<T> Default for Few<T> {
    fn default() -> Self {
        Self(Inner::List(Vec::new()))
    }
}

impl<T> Deref for Few<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        match &self.0 {
            Inner::One(element) => slice::from_ref(element),
            Inner::List(list) => list,
        }
    }
}

impl<T> DerefMut for Few<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        match &mut self.0 {
            Inner::One(element) => slice::from_mut(element),
            Inner::List(list) => list,
        }
    }
}

impl<T: PartialEq> PartialEq for Few<T> {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl<T: Eq> Eq for Few<T> {}

impl<T: fmt::Debug> fmt::Debug for Few<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

impl<T> Extend<T> for Few<T> {
    fn extend<I: IntoIterator<Item = T>>(&mut self, elements: I) {
        for element in elements {
            self.push(element);
        }
    }
}

impl<T> FromIterator<T> for Few<T> {
    fn from_iter<I: IntoIterator<Item = T>>(elements: I) -> Self {
        let mut elements = elements.into_iter();
        let Some(first) = elements.next() else { return Self::default() };
        let Some(second) = elements.next() else { return Self::one(first) };
        let mut list = Vec::with_capacity(2 + elements.size_hint().0);
        list.extend([first, second]);
        list.extend(elements);
        Self(Inner::List(list))
    }
}

impl<T, const N: usize> From<[T; N]> for Few<T> {
    fn from(elements: [T; N]) -> Self {
        elements.into_iter().collect()
    }
}

impl<T> IntoIterator for Few<T> {
    type Item = T;
    type IntoIter = Chain<option::IntoIter<T>, vec::IntoIter<T>>;

    fn into_iter(self) -> Self::IntoIter {
        let (one, list) = match self.0 {
            Inner::One(element) => (Some(element), Vec::new()),
            Inner::List(list) => (None, list),
        };
        one.into_iter().chain(list)
    }
}

impl<'a, T> IntoIterator for &'a Few<T> {
    type Item = &'a T;
    type IntoIter = slice::Iter<'a, T>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl<T: Serialize> Serialize for Few<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self)
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Few<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Elements<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for Elements<T> {
            type Value = Few<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Few<T>, A::Error> {
                let Some(first) = elements.next_element()? else { return Ok(Few::default()) };
                let Some(second) = elements.next_element()? else { return Ok(Few::one(first)) };
                let room = elements.size_hint().unwrap_or(0).min(ROOM_BY_WORD);
                let mut list = Vec::with_capacity(2 + room);
                list.extend([first, second]);
                while let Some(element) = elements.next_element()? {
                    list.push(element);
                }
                Ok(Few(Inner::List(list)))
            }
        }

        deserializer.deserialize_seq(Elements(PhantomData))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_a_list_whatever_it_holds_it_in() {
        for count in 0..5 {
            let wanted: Vec<u32> = (0..count).collect();
            let collected: Few<u32> = (0..count).collect();
            let mut pushed = Few::default();
            pushed.extend(0..count);
            assert_eq!(collected, pushed);
            assert_eq!(&*collected, &wanted[..]);
            assert_eq!(format!("{collected:?}"), format!("{wanted:?}"));
            assert_eq!((&collected).into_iter().count(), wanted.len());
            pushed.iter_mut().for_each(|element| *element += 1);
            assert_eq!(pushed.into_iter().collect::<Vec<_>>(), (1..=count).collect::<Vec<_>>());
        }
        let list = Few(Inner::List(vec![7]));
        assert_eq!(list, Few::one(7), "how it came to one element makes no difference");
        assert_ne!(list, Few::from([7, 8]));
    }
}
