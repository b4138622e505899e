//! `subnet.env`: unchanged by encoding and decoding, with unknown lines ignored.

use loden::lease::flannel::SubnetEnv;

pub fn run(bytes: &[u8]) {
    let Ok(text) = core::str::from_utf8(bytes) else { return };
    let read = text.parse::<SubnetEnv>();
    assert_eq!(format!("# FLANNEL_MTU=1\n\n{text}\nOTHER=1\n=\n").parse(), read);
    match read {
        Ok(env) => {
            assert!(env.network().contains(&env.subnet()));
            assert!(env.subnet().prefix_len() <= 30);
            assert!(env.subnet().hosts().next() == Some(env.bridge()));
            assert_eq!(env.to_string().parse(), Ok(env));
        }
        Err(error) => assert!(error.to_string().len() < 1024),
    }
}
