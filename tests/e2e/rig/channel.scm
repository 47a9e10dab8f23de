;; SPDX-License-Identifier: GPL-3.0-or-later
;; What an operating system with narswarm's services would run:
;;   guix repl -L CHANNEL -- channel.scm SYSTEM-FILE
;; Prints one JSON object: the settings files, guix-daemon's environment, the Shepherd services.

(use-modules (gnu) (gnu services) (gnu services shepherd) (gnu system)
             (guix gexp) (guix ui) (ice-9 match) (json) (narswarm services) (srfi srfi-1))

(define system
  (load* (last (command-line)) (make-user-module '((gnu) (guix gexp)))))

(define services (operating-system-services system))

(define (settings-of type program)
  (let ((service (find (lambda (service) (eq? type (service-kind service))) services)))
    (plain-file-content
     (narswarm-settings-file program
                             (narswarm-configuration-settings (service-value service))))))

(define guix-daemon
  (service-value (fold-services services #:target-type guix-service-type)))

(define shepherd
  (service-value (fold-services services #:target-type shepherd-root-service-type)))

(define provisions
  (append-map (lambda (service) (map symbol->string (shepherd-service-provision service)))
              (shepherd-configuration-services shepherd)))

(scm->json
 `(("tracker" . ,(settings-of narswarm-tracker-service-type "tracker"))
   ("seeder" . ,(settings-of narswarm-seeder-service-type "seeder"))
   ("substituter" . ,(settings-of narswarm-substituter-service-type "substituter"))
   ("environment" . ,(list->vector (guix-configuration-environment guix-daemon)))
   ("provisions" . ,(list->vector provisions))))
