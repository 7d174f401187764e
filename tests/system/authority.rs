//! A CA in a test's hand: what it issues and what it takes back.

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SanType, SerialNumber,
    date_time_ymd,
};

/// A CA of the test's own.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub pem: String,
}

impl Authority {
    pub fn new(name: &str) -> Authority {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Authority { issuer: Issuer::new(params, key), pem }
    }

    /// Certificate and key with these URIs as names.
    pub fn issue(&self, uris: &[&str], usage: ExtendedKeyUsagePurpose) -> [String; 2] {
        self.issue_until(2100, uris, usage)
    }

    pub fn issue_until(&self, year: i32, uris: &[&str], usage: ExtendedKeyUsagePurpose) -> [String; 2] {
        let mut params = CertificateParams::default();
        params.not_after = date_time_ymd(year, 1, 1);
        self.sign(params, uris, usage)
    }

    /// A client's certificate that a revocation list can name.
    pub fn issue_numbered(&self, serial: u64, uri: &str) -> [String; 2] {
        let mut params = CertificateParams::default();
        params.serial_number = Some(SerialNumber::from(serial));
        self.sign(params, &[uri], ExtendedKeyUsagePurpose::ClientAuth)
    }

    /// A revocation list with these serial numbers, good until that year.
    pub fn revoked_until(&self, year: i32, serials: &[u64]) -> String {
        let revoked = |serial: &u64| RevokedCertParams {
            serial_number: SerialNumber::from(*serial),
            revocation_time: date_time_ymd(2019, 1, 1),
            reason_code: None,
            invalidity_date: None,
        };
        let params = CertificateRevocationListParams {
            this_update: date_time_ymd(2019, 1, 1),
            next_update: date_time_ymd(year, 1, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: serials.iter().map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&self.issuer).unwrap().pem().unwrap()
    }

    fn sign(
        &self,
        mut params: CertificateParams,
        uris: &[&str],
        usage: ExtendedKeyUsagePurpose,
    ) -> [String; 2] {
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![usage];
        params.subject_alt_names = uris.iter().map(|uri| SanType::URI((*uri).try_into().unwrap())).collect();
        let key = KeyPair::generate().unwrap();
        [params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem()]
    }
}
