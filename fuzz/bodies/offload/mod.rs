//! The bodies of the fuzz targets for GSO packets. The ordinary tests run them over the committed seeds.

pub mod coalesce;
pub mod model;
pub mod opinion;
pub mod script;
pub mod segment;
pub mod vnet;
