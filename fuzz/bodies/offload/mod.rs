//! What the fuzz targets of GSO packets do with their input. The ordinary tests run the same over the committed seeds.

pub mod coalesce;
pub mod model;
pub mod opinion;
pub mod script;
pub mod segment;
pub mod vnet;
