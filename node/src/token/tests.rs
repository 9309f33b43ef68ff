//! Round trips, and that nothing but what was signed is taken.

use proptest::prelude::*;

use super::*;

fn session(seed: u128) -> SessionId {
    SessionId(uuid::Builder::from_random_bytes(seed.to_be_bytes()).into_uuid())
}

fn first(seed: u128) -> Signed {
    Signed { session: session(seed), number: 0 }
}

#[test]
fn has_the_form() {
    let text = format!("signing = 'a_b-1'\n[keys]\n'a_b-1' = '{}'\n", BASE64.encode([7; 32]));
    let keyring = Keyring::from_toml(&text).unwrap();
    let token = keyring.sign(session(1), 0);
    let parts: Vec<&str> = token.split('.').collect();
    assert_eq!((parts[0], parts[1], parts[2].len(), parts[3], parts[4].len()), ("v2", "a_b-1", 22, "0", 43));
    assert_eq!(token, keyring.sign(session(1), 0), "signing is deterministic");
    // Held fixed: tokens outlive versions of the program.
    assert_eq!(parts[2], "AAAAAAAAQACAAAAAAAAAAQ");
    let tag =
        Hmac::<Sha256>::new_from_slice(&[7; 32]).unwrap().chain_update(b"v2.a_b-1.AAAAAAAAQACAAAAAAAAAAQ.0").finalize();
    assert_eq!(parts[4], BASE64.encode(tag.into_bytes()));
}

#[test]
fn what_is_no_token_is_refused() {
    let keyring = Keyring::generate();
    let token = keyring.sign(session(2), 0);
    let (signed, tag) = token.rsplit_once('.').unwrap();
    let long_kid = format!("v2.{}.{}.0.{tag}", "k".repeat(33), "A".repeat(22));
    let cases: Vec<String> = vec![
        String::new(),
        ".".repeat(3),
        "v2".to_owned(),
        signed.to_owned(),
        format!("{signed}."),
        format!("{token}."),
        format!("{token}="),
        format!(" {token}"),
        format!("{token}\n"),
        format!(".{token}"),
        token.replacen("v2", "v1", 1),
        token.replacen("v2", "V2", 1),
        token.replace('.', ".."),
        format!("{}.{tag}", signed.replace('.', "")),
        long_kid,
        token.replacen(".0.", ".00.", 1),
        token.replacen(".0.", ".+0.", 1),
        token.replacen(".0.", "..", 1),
        token.replacen(".0.", ".4294967296.", 1),
        format!("v1.{}", token.split_once('.').unwrap().1.replacen(".0.", ".", 1)),
        "x".repeat(10_000),
        "v2.ä.AAAAAAAAAAAAAAAAAAAAAA.0.AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA".to_owned(),
    ];
    for case in cases {
        assert_eq!(keyring.verify(&case), Err(TokenError::Malformed), "{case:?}");
    }
}

#[test]
fn the_last_character_has_one_spelling() {
    // 43 characters carry 258 bits for 256: four spellings of the last one decode to one tag where a decoder is lax.
    let keyring = Keyring::generate();
    let token = keyring.sign(session(3), 0);
    let accepted =
        ('!'..='~').filter(|last| keyring.verify(&format!("{}{last}", &token[..token.len() - 1])).is_ok()).count();
    assert_eq!(accepted, 1);
}

#[test]
fn a_number_is_bound_to_its_tag() {
    let keyring = Keyring::generate();
    let token = keyring.sign(session(9), 1);
    assert_eq!(keyring.verify(&token), Ok(Signed { session: session(9), number: 1 }));
    assert_eq!(keyring.verify(&token.replacen(".1.", ".2.", 1)), Err(TokenError::BadSignature));
}

#[test]
fn keys_rotate() {
    let mut keyring = Keyring::generate();
    let old_kid = keyring.signing().to_owned();
    let old = keyring.sign(session(4), 0);
    let before = keyring.clone();
    let new_kid = keyring.rotate().to_owned();
    let new = keyring.sign(session(4), 0);
    assert_ne!(old_kid, new_kid);
    assert_eq!((keyring.verify(&old), keyring.verify(&new)), (Ok(first(4)), Ok(first(4))));
    assert_eq!(before.verify(&new), Err(TokenError::UnknownKey));
    assert_eq!(keyring.kids().count(), 2);
    assert_eq!(Keyring::generate().verify(&old), Err(TokenError::UnknownKey));
}

#[test]
fn a_tag_is_bound_to_its_key() {
    let mut keyring = Keyring::generate();
    let first = keyring.signing().to_owned();
    let token = keyring.sign(session(5), 0);
    let second = keyring.rotate().to_owned();
    assert_eq!(keyring.verify(&token.replace(&first, &second)), Err(TokenError::BadSignature));
    // The same id of a key with another secret.
    let text = |byte| format!("signing = 'k'\n[keys]\nk = '{}'\n", BASE64.encode([byte; 32]));
    let (ours, theirs) = (Keyring::from_toml(&text(1)).unwrap(), Keyring::from_toml(&text(2)).unwrap());
    assert_eq!(ours.verify(&theirs.sign(session(5), 0)), Err(TokenError::BadSignature));
}

#[test]
fn files_round_trip_and_are_private() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("deep/keyring.toml");
    let mut keyring = Keyring::generate();
    keyring.save(&path).unwrap();
    keyring.rotate();
    keyring.save(&path).unwrap();
    let loaded = Keyring::load(&path).unwrap();
    assert_eq!(loaded.to_toml(), keyring.to_toml());
    assert_eq!(loaded.verify(&keyring.sign(session(6), 0)), Ok(first(6)));
    assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "nothing is left beside the file");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        let error = Keyring::load(&path).unwrap_err().to_string();
        assert!(error.contains(&format!("chmod 600 {}", path.display())), "{error}");
    }
}

#[test]
fn what_is_no_keyring_is_said_without_secrets() {
    let secret = BASE64.encode([9; 32]);
    for (text, says) in [
        (format!("signing = 'b'\n[keys]\na = '{secret}'"), "signing key \"b\""),
        (format!("signing = 'a'\n[keys]\n'a.b' = '{secret}'"), "\"a.b\""),
        (format!("signing = 'a'\n[keys]\na = '{secret}AA'"), "32 bytes"),
        (format!("signing = 'a'\n[keys]\na = {secret}"), "not a keyring"),
        (format!("[keys]\na = '{secret}'"), "not a keyring"),
        (format!("signing = 'a'\nother = '{secret}'\n[keys]\na = '{secret}'"), "not a keyring"),
        (String::new(), "not a keyring"),
    ] {
        let error = Keyring::from_toml(&text).unwrap_err().to_string();
        assert!(
            error.contains(says) && !error.contains(&secret) && error.contains("roost keys new"),
            "{text:?}: {error}"
        );
    }
    let error = Keyring::load(Path::new("/nowhere/k.toml")).unwrap_err().to_string();
    assert!(error.contains("/nowhere/k.toml"), "{error}");
    let keyring = Keyring::generate();
    let shown = format!("{keyring:?}");
    assert!(
        shown.contains(keyring.signing())
            && keyring.keys.values().all(|key| !shown.contains(&BASE64.encode(key.secret)))
    );
}

proptest! {
    #[test]
    fn every_id_comes_back(seed: u128, number: u32, rotations in 0usize..3) {
        let mut keyring = Keyring::generate();
        for _ in 0..rotations {
            keyring.rotate();
        }
        let token = keyring.sign(session(seed), number);
        prop_assert!(token.len() <= TOKEN_MAX_BYTES);
        prop_assert_eq!(keyring.verify(&token), Ok(Signed { session: session(seed), number }));
    }

    #[test]
    fn every_other_byte_and_length_is_refused(seed: u128, other: u8) {
        let mut keyring = Keyring::generate();
        keyring.rotate();
        let token = keyring.sign(session(seed), 0).into_bytes();
        for at in 0..token.len() {
            let mut bytes = token.clone();
            if bytes[at] != other {
                bytes[at] = other;
                if let Ok(text) = std::str::from_utf8(&bytes) {
                    prop_assert!(keyring.verify(text).is_err(), "{text}");
                }
            }
            prop_assert!(keyring.verify(std::str::from_utf8(&token[..at]).unwrap()).is_err());
            let mut longer = token.clone();
            longer.insert(at, other);
            if let Ok(text) = std::str::from_utf8(&longer) {
                prop_assert!(keyring.verify(text).is_err(), "{text}");
            }
        }
    }

    #[test]
    fn any_text_is_refused_without_a_panic(text: String) {
        prop_assert!(Keyring::generate().verify(&text).is_err());
    }
}

/// Nodes compare it: a difference is one of keys, not of which one signs.
#[test]
fn a_fingerprint_is_of_the_keys_and_tells_no_secret() {
    let mut keyring = Keyring::generate();
    let first = keyring.fingerprint();
    assert_eq!(Keyring::from_toml(&keyring.to_toml()).unwrap().fingerprint(), first);
    assert_ne!(Keyring::generate().fingerprint(), first);
    let old = keyring.signing().to_owned();
    let new = keyring.rotate().to_owned();
    let both = keyring.fingerprint();
    assert_ne!(both, first);
    let signs_with_old = keyring.to_toml().replace(&format!("signing = \"{new}\""), &format!("signing = \"{old}\""));
    assert_eq!(Keyring::from_toml(&signs_with_old).unwrap().fingerprint(), both);
    assert_eq!(both.len(), 32);
}
