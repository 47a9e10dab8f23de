// SPDX-License-Identifier: GPL-3.0-or-later
// In place of a library of C++ for trackers of web pages, which are no subject of these tests.
export const RTCPeerConnection = undefined
export const RTCSessionDescription = undefined
export const RTCIceCandidate = undefined
export default {}
