//! How many bytes a value has in a frame between nodes. Bounds on frames are counted with it before there are any bytes, and
//! without them: what is too much for one frame goes into the next.
//!
//! The format is `wire/peer.rs`'s (bincode with fixed-width integers), whose tests hold the two together.

use std::fmt;

use serde::{Serialize, Serializer, ser};

/// The bytes of a value.
pub fn bytes<T: Serialize + ?Sized>(value: &T) -> usize {
    let mut count = Count(0);
    // Counting cannot fail, and none of our types refuses to be written.
    let _ = value.serialize(&mut count);
    count.0
}

/// A length, and the number of an enum's variant.
const LENGTH: usize = 8;
const VARIANT: usize = 4;

struct Count(usize);

impl Count {
    fn add(&mut self, bytes: usize) -> Result<(), fmt::Error> {
        self.0 += bytes;
        Ok(())
    }

    fn parts(&mut self, bytes: usize) -> Result<&mut Self, fmt::Error> {
        self.0 += bytes;
        Ok(self)
    }
}

macro_rules! fixed {
    ($($name:ident($of:ty);)*) => {
        $(fn $name(self, _: $of) -> Result<(), fmt::Error> {
            self.add(size_of::<$of>())
        })*
    };
}

impl Serializer for &mut Count {
    type Ok = ();
    type Error = fmt::Error;
    type SerializeSeq = Self;
    type SerializeTuple = Self;
    type SerializeTupleStruct = Self;
    type SerializeTupleVariant = Self;
    type SerializeMap = Self;
    type SerializeStruct = Self;
    type SerializeStructVariant = Self;

    fixed! {
        serialize_bool(bool);
        serialize_i8(i8);
        serialize_i16(i16);
        serialize_i32(i32);
        serialize_i64(i64);
        serialize_i128(i128);
        serialize_u8(u8);
        serialize_u16(u16);
        serialize_u32(u32);
        serialize_u64(u64);
        serialize_u128(u128);
        serialize_f32(f32);
        serialize_f64(f64);
    }

    fn is_human_readable(&self) -> bool {
        false
    }

    fn serialize_char(self, value: char) -> Result<(), fmt::Error> {
        self.add(value.len_utf8())
    }

    fn serialize_str(self, value: &str) -> Result<(), fmt::Error> {
        self.add(LENGTH + value.len())
    }

    fn serialize_bytes(self, value: &[u8]) -> Result<(), fmt::Error> {
        self.add(LENGTH + value.len())
    }

    fn serialize_none(self) -> Result<(), fmt::Error> {
        self.add(1)
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<(), fmt::Error> {
        value.serialize(self.parts(1)?)
    }

    fn serialize_unit(self) -> Result<(), fmt::Error> {
        Ok(())
    }

    fn serialize_unit_struct(self, _: &'static str) -> Result<(), fmt::Error> {
        Ok(())
    }

    fn serialize_unit_variant(self, _: &'static str, _: u32, _: &'static str) -> Result<(), fmt::Error> {
        self.add(VARIANT)
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(self, _: &'static str, value: &T) -> Result<(), fmt::Error> {
        value.serialize(self)
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        value: &T,
    ) -> Result<(), fmt::Error> {
        value.serialize(self.parts(VARIANT)?)
    }

    fn serialize_seq(self, _: Option<usize>) -> Result<Self, fmt::Error> {
        self.parts(LENGTH)
    }

    fn serialize_tuple(self, _: usize) -> Result<Self, fmt::Error> {
        Ok(self)
    }

    fn serialize_tuple_struct(self, _: &'static str, _: usize) -> Result<Self, fmt::Error> {
        Ok(self)
    }

    fn serialize_tuple_variant(self, _: &'static str, _: u32, _: &'static str, _: usize) -> Result<Self, fmt::Error> {
        self.parts(VARIANT)
    }

    fn serialize_map(self, _: Option<usize>) -> Result<Self, fmt::Error> {
        self.parts(LENGTH)
    }

    fn serialize_struct(self, _: &'static str, _: usize) -> Result<Self, fmt::Error> {
        Ok(self)
    }

    fn serialize_struct_variant(self, _: &'static str, _: u32, _: &'static str, _: usize) -> Result<Self, fmt::Error> {
        self.parts(VARIANT)
    }
}

macro_rules! parts {
    ($($of:ident $name:ident($($field:ident: $field_of:ty)?);)*) => {
        $(impl ser::$of for &mut Count {
            type Ok = ();
            type Error = fmt::Error;

            fn $name<T: Serialize + ?Sized>(&mut self, $($field: $field_of,)? value: &T) -> Result<(), fmt::Error> {
                $(let _ = $field;)?
                value.serialize(&mut **self)
            }

            fn end(self) -> Result<(), fmt::Error> {
                Ok(())
            }
        })*
    };
}

parts! {
    SerializeSeq serialize_element();
    SerializeTuple serialize_element();
    SerializeTupleStruct serialize_field();
    SerializeTupleVariant serialize_field();
    SerializeStruct serialize_field(key: &'static str);
    SerializeStructVariant serialize_field(key: &'static str);
}

impl ser::SerializeMap for &mut Count {
    type Ok = ();
    type Error = fmt::Error;

    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<(), fmt::Error> {
        key.serialize(&mut **self)
    }

    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), fmt::Error> {
        value.serialize(&mut **self)
    }

    fn end(self) -> Result<(), fmt::Error> {
        Ok(())
    }
}
