//! What the tests and the fuzz targets of the core share. Nothing here uses loden's own parsing or arithmetic.

pub(crate) mod fragments;
pub(crate) mod host;
pub(crate) mod icmp;
pub(crate) mod model;
pub(crate) mod packet;
pub(crate) mod scenario;
